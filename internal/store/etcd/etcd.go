// Package etcd is the durable store: an etcd server in this process. Requests go
// to the server's own methods, not through a socket; raft puts writes that come
// together into one fsync. A client port with mutual TLS is opened so that
// etcdctl can look.
//
// It starts etcdserver itself instead of package embed, whose HTTP handlers link
// html/template and with it every method of every type (docs/dependencies.md).
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/raft/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/proa-dev/proa/internal/store"
)

// Options say where and how the server keeps its data.
type Options struct {
	Dir string // data folder; made when it does not exist
	// ClientAddr is a loopback host:port for etcdctl; "" opens none. TLS must then
	// demand and verify client certificates.
	ClientAddr string
	TLS        *tls.Config
	// QuotaBytes bounds the database (0: 2 GiB). At the bound writes fail with
	// store.ErrNoSpace until space is made.
	QuotaBytes int64
	// KeepFor is how much history watches and paged lists can go back (0: 5 minutes).
	KeepFor time.Duration
	// UnsafeNoFsync gives up durability for speed: for tests.
	UnsafeNoFsync bool
	Logger        *slog.Logger
}

const (
	memberName = "proa"
	// A tick of 10 ms lets the only member elect itself within 0.1 s of its start;
	// etcd's 100 ms costs up to a second.
	tickMillis    = 10
	electionTicks = 10
	maxRequest    = 3 << 20 // as large as the API server takes
	startTimeout  = 30 * time.Second
	// A write that etcd has not answered by then has an unknown outcome.
	writeTimeout = 15 * time.Second
)

// ErrLocked is returned when another process uses the data folder.
var ErrLocked = errors.New("the data folder is in use by another process")

// Store is a running server.
type Store struct {
	opts   Options
	log    *slog.Logger
	server *etcdserver.EtcdServer
	kv     pb.KVServer
	grpc   *grpc.Server
	lock   *os.File

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once

	compact compactor
}

var _ store.Store = (*Store)(nil)

// New opens or makes the data folder, starts the server and returns when it can
// take writes. Errors: ErrLocked.
func New(ctx context.Context, opts Options) (*Store, error) {
	if opts.QuotaBytes == 0 {
		opts.QuotaBytes = 2 << 30
	}
	if opts.KeepFor == 0 {
		opts.KeepFor = 5 * time.Minute
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store's folder: %w", err)
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts, log: opts.Logger, lock: lock}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.start(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("start the store in %s: %w", opts.Dir, err)
	}
	s.compact.start(s)
	return s, nil
}

func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the store: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", dir, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func (s *Store) start(ctx context.Context) error {
	logger := newLogger(s.log)
	// No peer port is opened by a single member; its address is only a name.
	peer := types.URLs{url.URL{Scheme: "http", Host: "127.0.0.1:2380"}}
	clients := types.URLs{url.URL{Scheme: "https", Host: "127.0.0.1:2379"}}
	if s.opts.ClientAddr != "" {
		clients[0].Host = s.opts.ClientAddr
	}
	server, err := etcdserver.NewServer(config.ServerConfig{
		Name:                              memberName,
		ClientURLs:                        clients,
		PeerURLs:                          peer,
		DataDir:                           filepath.Join(s.opts.Dir, "etcd"),
		SnapshotCount:                     etcdserver.DefaultSnapshotCount,
		SnapshotCatchUpEntries:            1000,
		MaxSnapFiles:                      2,
		MaxWALFiles:                       2,
		InitialPeerURLsMap:                types.URLsMap{memberName: peer},
		InitialClusterToken:               "proa",
		NewCluster:                        true,
		TickMs:                            tickMillis,
		ElectionTicks:                     electionTicks,
		InitialElectionTickAdvance:        true,
		BootstrapTimeout:                  startTimeout,
		CompactionBatchLimit:              1000,
		CompactionSleepInterval:           10 * time.Millisecond,
		QuotaBackendBytes:                 s.opts.QuotaBytes,
		MaxTxnOps:                         128,
		MaxRequestBytes:                   maxRequest,
		MaxConcurrentStreams:              1 << 10,
		WarningApplyDuration:              500 * time.Millisecond,
		WarningUnaryRequestDuration:       time.Second,
		StrictReconfigCheck:               true,
		AuthToken:                         "simple",
		TokenTTL:                          300,
		PreVote:                           true,
		Logger:                            logger,
		UnsafeNoFsync:                     s.opts.UnsafeNoFsync,
		DowngradeCheckTime:                time.Hour,
		BootstrapDefragThresholdMegabytes: 100,
		MaxLearners:                       1,
		V2Deprecation:                     config.V2DeprDefault,
		ServerFeatureGate:                 features.NewDefaultServerFeatureGate(memberName, logger),
		Metrics:                           "basic",
	})
	if err != nil {
		return err
	}
	s.server = server
	s.kv = v3rpc.NewQuotaKVServer(server)
	server.Start()
	if s.opts.ClientAddr != "" {
		if err := s.serveClients(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-server.ReadyNotify():
		return nil
	case <-server.StopNotify():
		return errors.New("etcd stopped during its start")
	case <-ctx.Done():
		return fmt.Errorf("wait for etcd to be ready: %w", ctx.Err())
	}
}

// serveClients opens the port for etcdctl.
func (s *Store) serveClients() error {
	if s.opts.TLS == nil || s.opts.TLS.ClientAuth != tls.RequireAndVerifyClientCert {
		return errors.New("the client port must demand client certificates")
	}
	l, err := net.Listen("tcp", s.opts.ClientAddr)
	if err != nil {
		return fmt.Errorf("open the store's client port: %w", err)
	}
	s.grpc = v3rpc.Server(s.server, s.opts.TLS, nil)
	s.wg.Go(func() {
		if err := s.grpc.Serve(l); err != nil && s.ctx.Err() == nil {
			s.log.Error("serve the store's client port", "err", err)
		}
	})
	return nil
}

// Close stops the server. Every acknowledged write is on disk already.
func (s *Store) Close() error {
	s.once.Do(s.stop)
	return nil
}

func (s *Store) stop() {
	s.cancel()
	if s.grpc != nil {
		s.grpc.Stop()
	}
	if s.server != nil {
		s.server.Stop()
	}
	s.wg.Wait()
	s.lock.Close()
}

func (s *Store) Get(ctx context.Context, key string) (store.KV, int64, error) {
	r, err := s.server.Range(ctx, &pb.RangeRequest{Key: []byte(key), Serializable: true})
	if err != nil {
		return store.KV{}, 0, s.err(ctx, err, false)
	}
	if len(r.Kvs) == 0 {
		return store.KV{}, r.Header.Revision, store.ErrNotFound
	}
	return fromKV(r.Kvs[0]), r.Header.Revision, nil
}

// Reads of the only member are linearizable without asking raft: a write is
// acknowledged after it was applied here.
func (s *Store) List(ctx context.Context, prefix string, opts store.ListOptions) (store.ListResult, error) {
	from := max(prefix, opts.From)
	req := &pb.RangeRequest{Key: []byte(from), RangeEnd: end(prefix), Revision: opts.Revision, Limit: int64(opts.Limit), KeysOnly: opts.KeysOnly, Serializable: true}
	r, err := s.server.Range(ctx, req)
	if err != nil {
		return store.ListResult{}, s.err(ctx, err, false)
	}
	out := store.ListResult{Revision: r.Header.Revision, More: r.More, KVs: make([]store.KV, len(r.Kvs))}
	if opts.Revision != 0 {
		out.Revision = opts.Revision
	}
	for i, kv := range r.Kvs {
		out.KVs[i] = fromKV(kv)
	}
	return out, nil
}

// end is the first key after all those with a prefix.
func end(prefix string) []byte {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return b[:i+1]
		}
	}
	return []byte{0} // all keys
}

func fromKV(kv *mvccpb.KeyValue) store.KV {
	return store.KV{Key: string(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision, CreateRevision: kv.CreateRevision}
}

func (s *Store) Create(ctx context.Context, key string, value []byte) (int64, error) {
	return s.write(ctx, key, 0, put(key, value))
}

func (s *Store) Update(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	return s.write(ctx, key, revision, put(key, value))
}

func (s *Store) Delete(ctx context.Context, key string, revision int64) (int64, error) {
	return s.write(ctx, key, revision, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}})
}

func put(key string, value []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: value}}}
}

// write does op if the key's ModRevision is expected (0: no such key).
func (s *Store) write(ctx context.Context, key string, expected int64, op *pb.RequestOp) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return 0, err // nothing was sent
	}
	r, err := s.kv.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Result: pb.Compare_EQUAL, Target: pb.Compare_MOD, Key: []byte(key),
			TargetUnion: &pb.Compare_ModRevision{ModRevision: expected}}},
		Success: []*pb.RequestOp{op},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}},
	})
	if err != nil {
		return 0, s.err(ctx, err, true)
	}
	if r.Succeeded {
		s.compact.wrote()
		return r.Header.Revision, nil
	}
	conflict := &store.ConflictError{Key: key}
	if found := r.Responses[0].GetResponseRange(); len(found.GetKvs()) > 0 {
		kv := fromKV(found.Kvs[0])
		conflict.Current = &kv
	}
	return 0, conflict
}

func (s *Store) Revision(context.Context) (int64, error) {
	if s.ctx.Err() != nil {
		return 0, store.ErrClosed
	}
	return s.server.KV().Rev(), nil
}

func (s *Store) Compact(ctx context.Context, revision int64) error {
	_, err := s.server.Compact(ctx, &pb.CompactionRequest{Revision: revision})
	return s.err(ctx, err, true)
}

// err turns etcd's errors into the store's. sent says that a write may have been
// proposed, so that a time-out leaves its outcome open.
func (s *Store) err(ctx context.Context, err error, sent bool) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mvcc.ErrCompacted), errors.Is(err, rpctypes.ErrGRPCCompacted):
		return store.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev), errors.Is(err, rpctypes.ErrGRPCFutureRev):
		return store.ErrFutureRevision
	case errors.Is(err, etcderrors.ErrNoSpace), errors.Is(err, rpctypes.ErrGRPCNoSpace):
		s.compact.full()
		return store.ErrNoSpace
	case errors.Is(err, etcderrors.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrGRPCRequestTooLarge):
		return store.ErrTooLarge
	case s.ctx.Err() != nil, errors.Is(err, etcderrors.ErrStopped), errors.Is(err, rpctypes.ErrGRPCStopped), errors.Is(err, raft.ErrStopped):
		if sent {
			return errors.Join(store.ErrClosed, store.ErrUnknown)
		}
		return store.ErrClosed
	case !sent && ctx.Err() != nil:
		return ctx.Err()
	case sent:
		// Whatever else ends a proposal (time-out, lost leader) does not say whether it was applied.
		return fmt.Errorf("%w: %w", store.ErrUnknown, err)
	}
	return err
}
