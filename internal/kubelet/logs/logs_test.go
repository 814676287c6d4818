package logs

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const sample = `2026-01-01T00:00:00.000000001Z stdout F one
2026-01-01T00:00:01Z stderr F oops
2026-01-01T00:00:02Z stdout P two-
2026-01-01T00:00:03Z stdout F and-a-half
damaged line
2026-01-01T00:00:04Z stdout F 
2026-01-01T00:00:05Z stdout F last
`

func write(t *testing.T, content string) (root, path string) {
	t.Helper()
	root = t.TempDir()
	path = filepath.Join(root, "app", "0.log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return root, path
}

func TestRead(t *testing.T) {
	at := func(s string) time.Time { x, _ := time.Parse(time.RFC3339, s); return x }
	for _, tc := range []struct {
		name    string
		content string
		o       Options
		want    string
	}{
		{"everything", sample, Options{Tail: -1}, "one\noops\ntwo-and-a-half\n\nlast\n"},
		{"one stream", sample, Options{Tail: -1, Stream: "stderr"}, "oops\n"},
		{"since a time", sample, Options{Tail: -1, Since: at("2026-01-01T00:00:04Z")}, "\nlast\n"},
		{"the last lines of the file", sample, Options{Tail: 2}, "\nlast\n"},
		{"more lines than there are", sample, Options{Tail: 100}, "one\noops\ntwo-and-a-half\n\nlast\n"},
		{"no lines", sample, Options{Tail: 0}, ""},
		{"at most some bytes", sample, Options{Tail: -1, Limit: 6}, "one\noo"},
		{"with times, once for a split line", "2026-01-01T00:00:02.5Z stdout P a\n2026-01-01T00:00:03Z stdout F b\n", Options{Tail: -1, Timestamps: true}, "2026-01-01T00:00:02.500000000Z ab\n"},
		{"without a final newline", "2026-01-01T00:00:02Z stdout F a", Options{Tail: -1}, "a\n"},
		{"tags after the first", "2026-01-01T00:00:02Z stdout F:x a\n", Options{Tail: -1}, "a\n"},
		{"empty", "", Options{Tail: 5}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, path := write(t, tc.content)
			var b bytes.Buffer
			if err := Read(context.Background(), root, path, tc.o, nil, &b); err != nil {
				t.Fatal(err)
			}
			if b.String() != tc.want {
				t.Errorf("got %q, want %q", b.String(), tc.want)
			}
		})
	}
}

func TestReadDoesNotFollowSymlinks(t *testing.T) {
	root, path := write(t, sample)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("2026-01-01T00:00:02Z stdout F secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, path); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Read(context.Background(), root, path, Options{Tail: -1}, nil, &b); err == nil || b.Len() > 0 {
		t.Errorf("read %q, err %v", b.String(), err)
	}
	if err := Read(context.Background(), root, filepath.Join(root, "..", "x"), Options{}, nil, &b); err == nil {
		t.Error("read above the root")
	}
}

type reopener struct{ f func() }

func (r reopener) ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	r.f()
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// pipe is a writer whose content can be awaited.
type pipe struct{ ch chan string }

func (p pipe) Write(b []byte) (int, error) { p.ch <- string(b); return len(b), nil }

func TestFollowAcrossRotationLosesNothing(t *testing.T) {
	root, path := write(t, "2026-01-01T00:00:00Z stdout F one\n")
	var running atomic.Bool
	running.Store(true)
	out := pipe{make(chan string, 100)}
	done := make(chan error, 1)
	go func() {
		done <- Read(context.Background(), root, path, Options{Tail: -1, Follow: true}, running.Load, out)
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-out.ch:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("no %q", want)
		}
	}
	expect("one\n")
	appendTo := func(s string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	appendTo("2026-01-01T00:00:01Z stdout F tw")
	appendTo("o\n")
	expect("two\n")
	r := NewRotator(reopener{func() { appendTo("2026-01-01T00:00:02Z stdout F three\n") }}, slog.New(slog.DiscardHandler))
	r.MaxSize = 1
	if err := r.Check(context.Background(), "id", path); err != nil {
		t.Fatal(err)
	}
	expect("three\n")
	running.Store(false)
	appendTo("2026-01-01T00:00:03Z stdout F end\n")
	expect("end\n")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRotationKeepsFiveFiles(t *testing.T) {
	_, path := write(t, sample)
	for _, s := range []string{"20260101-000000.gz", "20260101-000001", "20260101-000002", "20260101-000003"} {
		if err := os.WriteFile(path+"."+s, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := NewRotator(reopener{func() { _ = os.WriteFile(path, nil, 0o644) }}, slog.New(slog.DiscardHandler))
	r.MaxSize = 10
	if err := r.Check(context.Background(), "id", path); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	got := strings.Join(names, " ")
	if len(names) != 5 || strings.Contains(got, "000000") || !strings.Contains(got, "000001.gz 0.log.20260101-000002.gz 0.log.20260101-000003.gz") {
		t.Errorf("files %q", got)
	}
}

func TestTailOfALog(t *testing.T) {
	_, path := write(t, sample)
	if got := Tail(path, 2, 100); got != "\nlast\n" {
		t.Errorf("two lines: %q", got)
	}
	if got := Tail(path, 80, 4); got != "ast\n" {
		t.Errorf("four bytes: %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for l := range strings.Lines(sample) {
		f.Add([]byte(l))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if err != nil {
			return
		}
		if len(l.Content) > len(b) || (l.Stream != "stdout" && l.Stream != "stderr") {
			t.Errorf("%q gives %+v", b, l)
		}
		if !bytes.Contains(b, l.Content) {
			t.Errorf("content %q is not in %q", l.Content, b)
		}
	})
}
