// Package etcd is the durable store: an etcd server in this process. Requests go
// to the server's own methods, not through a socket; raft puts writes that come
// together into one fsync. A client port with mutual TLS can be opened so that
// etcdctl can look. A failed fsync ends the process: what was acknowledged must
// be on disk.
//
// It starts etcdserver itself instead of package embed, whose HTTP handlers link
// html/template and with it every method of every type (docs/dependencies.md).
// It has one member and opens no peer port.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
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
	// QuotaBytes bounds the database (0: 2 GiB). At the bound creates and updates
	// fail with store.ErrNoSpace until space is made; reads and deletes go on.
	QuotaBytes int64
	// DiskReserve is the free space on the data folder's disk below which creates and
	// updates fail with store.ErrDiskFull (0: 128 MiB): etcd ends the process when it
	// cannot write its log. Deletes go on down to an eighth of it.
	DiskReserve int64
	// KeepFor is how much history watches and paged lists can go back, at least (0:
	// 5 minutes); half as much again is kept at most.
	KeepFor time.Duration
	// KeepRevisions bounds the history under many writes (0: 100,000): about three
	// times as many are kept at most, however young.
	KeepRevisions int64
	// UnsafeNoFsync gives up durability for speed: for tests.
	UnsafeNoFsync bool
	Logger        *slog.Logger
}

const (
	memberName = "proa"
	token      = "proa"
	// etcd's own defaults. Nothing waits for an election time-out: see elect.
	tickMillis    = 100
	electionTicks = 10
	maxRequest    = 3 << 20 // as large as the API server takes
	startTimeout  = 30 * time.Second
)

// ErrLocked is returned when another process uses the data folder.
var ErrLocked = errors.New("the data folder is in use by another process")

// Store is a running server.
type Store struct {
	opts   Options
	log    *slog.Logger
	server *etcdserver.EtcdServer
	grpc   *grpc.Server
	addr   net.Addr
	lock   *os.File

	// calls is held for reading by each call: the server must not be closed under
	// one, for a read of a closed database crashes.
	calls  sync.RWMutex
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once

	keeper keeper
}

var _ store.Store = (*Store)(nil)

// New opens or makes the data folder, starts the server and returns when it can
// take writes. Errors: ErrLocked, store.ErrDiskFull.
func New(ctx context.Context, opts Options) (*Store, error) {
	if opts.QuotaBytes <= 0 {
		opts.QuotaBytes = 2 << 30
	}
	if opts.DiskReserve <= 0 {
		opts.DiskReserve = 128 << 20 // two segments of etcd's log
	}
	if opts.KeepFor <= 0 {
		opts.KeepFor = 5 * time.Minute
	}
	if opts.KeepRevisions <= 0 {
		opts.KeepRevisions = 100_000
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store's folder: %w", err)
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts, log: opts.Logger, lock: lock, keeper: newKeeper()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	first := 1 // a new store takes more than one that is there
	if _, err := os.Stat(filepath.Join(opts.Dir, "etcd")); err == nil {
		first = 0
	}
	if err := s.diskRoom(first); err != nil {
		s.Close()
		return nil, fmt.Errorf("start the store: %w", err)
	}
	if err := s.start(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("start the store in %s: %w", opts.Dir, err)
	}
	s.wg.Go(func() { s.keep() })
	s.wg.Go(func() {
		select {
		case <-s.ctx.Done():
		case <-s.server.StopNotify():
			s.log.Error("etcd stopped by itself: the store is closed", "dir", opts.Dir)
			s.cancel()
		}
	})
	return s, nil
}

// lockDir refuses a second process at once; etcd's own locks would wait. The
// kernel gives the lock back when the process ends, however it does.
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
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var listener net.Listener
	clients := types.URLs{}
	if s.opts.ClientAddr != "" {
		var err error
		if listener, err = s.listen(ctx); err != nil {
			return err
		}
		clients = append(clients, url.URL{Scheme: "https", Host: listener.Addr().String()})
	}
	// No peer port is opened by a single member; its address is only a name.
	peer := types.URLs{url.URL{Scheme: "http", Host: "127.0.0.1:2380"}}
	logger := newLogger(s.log)
	server, err := etcdserver.NewServer(config.ServerConfig{
		Name:          memberName,
		ClientURLs:    clients,
		PeerURLs:      peer,
		DataDir:       filepath.Join(s.opts.Dir, "etcd"),
		SnapshotCount: etcdserver.DefaultSnapshotCount,
		// There is no follower to catch up, but an election looks at the entries that
		// raft does not know to be applied yet, and panics when they are cut off: with
		// little kept, a start in the middle of a long log sometimes did.
		SnapshotCatchUpEntries: etcdserver.DefaultSnapshotCatchUpEntries,
		MaxSnapFiles:           2,
		MaxWALFiles:            2,
		InitialPeerURLsMap:     types.URLsMap{memberName: peer},
		InitialClusterToken:    token,
		NewCluster:             true,
		TickMs:                 tickMillis,
		ElectionTicks:          electionTicks,
		BootstrapTimeout:       startTimeout,
		// Small steps with pauses, so that writes go on beside a compaction.
		CompactionBatchLimit:    1000,
		CompactionSleepInterval: 10 * time.Millisecond,
		// The store refuses at QuotaBytes before it proposes. etcd's own check comes
		// when a write is applied, and then fails a write that it has done.
		QuotaBackendBytes:                 s.opts.QuotaBytes + s.opts.QuotaBytes/10 + 256<<20,
		MaxTxnOps:                         128,
		MaxRequestBytes:                   maxRequest + 4096, // and the key and raft's frame
		MaxConcurrentStreams:              1 << 10,
		WarningApplyDuration:              500 * time.Millisecond,
		WarningUnaryRequestDuration:       time.Second,
		StrictReconfigCheck:               true,
		ClientCertAuthEnabled:             true,
		AuthToken:                         "simple",
		BcryptCost:                        10,
		TokenTTL:                          300,
		PreVote:                           true,
		Logger:                            logger,
		UnsafeNoFsync:                     s.opts.UnsafeNoFsync,
		BootstrapDefragThresholdMegabytes: 100,
		MaxLearners:                       1,
		V2Deprecation:                     config.V2DeprDefault,
		ServerFeatureGate:                 features.NewDefaultServerFeatureGate(memberName, logger),
		Metrics:                           "basic",
	})
	if err != nil {
		if listener != nil {
			listener.Close()
		}
		return err
	}
	s.server = server
	server.Start()
	if err := s.elect(ctx); err != nil {
		if listener != nil {
			listener.Close()
		}
		return err
	}
	if listener != nil {
		s.serveClients(listener)
	}
	return nil
}

// elect makes the only member the leader at once, by the message with which a
// leader hands over. Otherwise it would wait for an election time-out: a second,
// or a tick so short that it wakes the process a hundred times a second for ever.
func (s *Store) elect(ctx context.Context) error {
	id := uint64(s.server.MemberID())
	handOver := &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), To: &id, From: &id}
	for wait := time.Millisecond; s.server.Lead() == 0; wait = min(2*wait, 50*time.Millisecond) {
		if s.caughtUp(id) {
			if err := s.server.Process(ctx, handOver); err != nil {
				return fmt.Errorf("elect the only member: %w", err)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.server.StopNotify():
			timer.Stop()
			return errors.New("etcd stopped during its start")
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("wait for etcd to elect itself: %w", ctx.Err())
		}
	}
	select {
	case <-s.server.ReadyNotify():
		return nil
	case <-s.server.StopNotify():
		return errors.New("etcd stopped during its start")
	case <-ctx.Done():
		return fmt.Errorf("wait for etcd to be ready: %w", ctx.Err())
	}
}

// caughtUp says whether raft knows that all it started with is applied. Before, an
// election would have it look at those entries, of which the server may have dropped
// the first already: raft panics then. etcd shows this state by expvar alone.
func (s *Store) caughtUp(id uint64) bool {
	f, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return true
	}
	st, ok := f.Value().(raft.Status)
	if !ok || st.ID != id {
		return true
	}
	commit := st.HardState.GetCommit()
	return commit > 0 && st.Applied >= commit
}

// listen opens the port for etcdctl.
func (s *Store) listen(ctx context.Context) (net.Listener, error) {
	if c := s.opts.TLS; c == nil || c.ClientAuth != tls.RequireAndVerifyClientCert || c.ClientCAs == nil {
		return nil, errors.New("the store's client port must demand client certificates of a CA of its own")
	}
	host, _, err := net.SplitHostPort(s.opts.ClientAddr)
	if err != nil {
		return nil, fmt.Errorf("the store's client address: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("the store's client address %s is not a loopback address", s.opts.ClientAddr)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.opts.ClientAddr)
	if err != nil {
		return nil, fmt.Errorf("open the store's client port: %w", err)
	}
	s.addr = l.Addr()
	return l, nil
}

func (s *Store) serveClients(l net.Listener) {
	s.grpc = v3rpc.Server(s.server, s.opts.TLS, nil, grpc.WaitForHandlers(true))
	s.wg.Go(func() {
		if err := s.grpc.Serve(l); err != nil && s.ctx.Err() == nil {
			s.log.Error("serve the store's client port", "err", err)
		}
	})
}

// ClientAddr is where etcdctl can connect; nil without such a port.
func (s *Store) ClientAddr() net.Addr { return s.addr }

// Close stops the server. Every acknowledged write is on disk already.
func (s *Store) Close() error {
	s.once.Do(s.stop)
	return nil
}

func (s *Store) stop() {
	s.cancel()
	s.calls.Lock()   // waits for the calls under way; the next sees ctx
	s.calls.Unlock() //nolint:staticcheck // nothing to do in between
	if s.grpc != nil {
		s.grpc.Stop()
	}
	s.wg.Wait()
	if s.server != nil {
		s.server.Stop()
	}
	s.lock.Close()
}

// enter begins a call that uses the server; leave ends it.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.calls.RLock()
	if s.ctx.Err() != nil {
		s.calls.RUnlock()
		return store.ErrClosed
	}
	return nil
}

func (s *Store) leave() { s.calls.RUnlock() }
