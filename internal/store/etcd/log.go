package etcd

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger hands etcd's warnings and errors to slog; what it tells of its
// ordinary life is left out. zap ends the process after a fatal entry.
func newLogger(log *slog.Logger) *zap.Logger { return zap.New(&core{log: log}) }

type core struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *core) With(f []zapcore.Field) zapcore.Core {
	return &core{c.log, append(append([]zapcore.Field(nil), c.fields...), f...)}
}

func (c *core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	// raft's warnings are about the other members, and about an election asked for
	// too early.
	switch {
	case !c.Enabled(e.Level), e.Level == zapcore.WarnLevel && e.LoggerName == "raft", e.Level <= zapcore.ErrorLevel && ordinary[e.Message]:
		return checked
	}
	return checked.AddCore(e, c)
}

// ordinary is said at every first start: the storage version is written when the
// first commit has brought the term, and tokens are of no use beside certificates.
var ordinary = map[string]bool{
	"Failed to detect schema version":              true,
	"failed to update storage version":             true,
	"simple token is not cryptographically signed": true,
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		f.AddTo(enc)
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(context.Background(), level, "etcd: "+e.Message, attrs...)
	return nil
}

func (c *core) Sync() error { return nil }
