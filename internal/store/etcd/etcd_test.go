package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/store"
	"github.com/proa-dev/proa/internal/store/storetest"
)

func open(t testing.TB, opts Options) *Store {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	opts.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, Options{UnsafeNoFsync: true}) })
}

// A1, A3, W7: what was acknowledged is there after a restart, revisions go on,
// and a second process is refused.
func TestDataAndRevisionSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	first := open(t, Options{Dir: dir})
	rev, err := first.Create(t.Context(), "/a", []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = New(t.Context(), Options{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("a second server on the same folder: %v", err)
	}
	first.Close()

	again := open(t, Options{Dir: dir})
	kv, _, err := again.Get(t.Context(), "/a")
	if err != nil || string(kv.Value) != "kept" || kv.ModRevision != rev {
		t.Fatalf("after a restart: %+v, %v", kv, err)
	}
	next, err := again.Update(t.Context(), "/a", []byte("new"), rev)
	if err != nil || next <= rev {
		t.Fatalf("revision %d after %d, %v", next, rev, err)
	}
}

// A25: a full store refuses writes, goes on reading, and recovers by itself.
func TestAFullStoreRecovers(t *testing.T) {
	s := open(t, Options{UnsafeNoFsync: true, QuotaBytes: 16 << 20})
	ctx := t.Context()
	value := make([]byte, 1<<20)
	rev, err := s.Create(ctx, "/big", value)
	for i := 0; err == nil && i < 100; i++ {
		rev2, e := s.Update(ctx, "/big", value, rev)
		if err = e; err == nil {
			rev = rev2
		}
	}
	if !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("writing 100 MiB into 16 MiB: %v", err)
	}
	if _, _, err := s.Get(ctx, "/big"); err != nil {
		t.Fatalf("read of a full store: %v", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err = s.Update(ctx, "/big", []byte("small"), rev); err == nil {
			break
		}
		if !errors.Is(err, store.ErrNoSpace) || time.Now().After(deadline) {
			t.Fatalf("the store does not recover: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// A disk that others have filled refuses writes before etcd would fail on it, and
// says so; reads and deletes go on.
func TestAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if _, err := New(t.Context(), Options{Dir: dir, DiskReserve: 1 << 60}); !errors.Is(err, store.ErrDiskFull) {
		t.Fatalf("a new store on a full disk: %v", err)
	}
	s := open(t, Options{Dir: dir, UnsafeNoFsync: true})
	rev, err := s.Create(t.Context(), "/a", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	s.opts.DiskReserve = int64(fs.Bfree)*int64(fs.Bsize) + 1<<40
	if _, err := s.Create(t.Context(), "/b", nil); !errors.Is(err, store.ErrDiskFull) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a create: %v", err)
	}
	if _, err := s.Update(t.Context(), "/a", nil, rev); !errors.Is(err, store.ErrDiskFull) {
		t.Errorf("an update: %v", err)
	}
	if kv, _, err := s.Get(t.Context(), "/a"); err != nil || string(kv.Value) != "x" {
		t.Errorf("read %+v, %v", kv, err)
	}
	s.opts.DiskReserve = int64(fs.Bfree) * int64(fs.Bsize) * 2
	if _, err := s.Delete(t.Context(), "/a", rev); err != nil {
		t.Errorf("a delete: %v", err)
	}
	s.opts.DiskReserve = 1
	if _, err := s.Create(t.Context(), "/b", nil); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestATooLargeValueIsRefused(t *testing.T) {
	s := open(t, Options{UnsafeNoFsync: true})
	if _, err := s.Create(t.Context(), "/x", make([]byte, maxRequest+1)); !errors.Is(err, store.ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
}

// A store full of live data takes no put, still takes deletes, and after them
// puts again.
func TestDeletesMakeRoom(t *testing.T) {
	s := open(t, Options{UnsafeNoFsync: true, QuotaBytes: 16 << 20})
	ctx := t.Context()
	revs := map[string]int64{}
	// Full is what no compaction and defragmentation helps: refused for longer than
	// the keeper waits between two attempts.
	refusedSince := time.Time{}
	for i := 0; refusedSince.IsZero() || time.Since(refusedSince) < 5*retryRoom/2; i++ {
		key := fmt.Sprintf("/big/%d", i)
		rev, err := s.Create(ctx, key, make([]byte, 1<<20))
		switch {
		case err == nil:
			revs[key], refusedSince = rev, time.Time{}
		case !errors.Is(err, store.ErrNoSpace) || i > 10000:
			t.Fatalf("filling 16 MiB: %d keys, %v", len(revs), err)
		default:
			if refusedSince.IsZero() {
				refusedSince = time.Now()
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if all, err := s.List(ctx, "/big/", store.ListOptions{}); err != nil || len(all.KVs) != len(revs) {
		t.Fatalf("%d keys of %d, %v: a refused write was applied", len(all.KVs), len(revs), err)
	}
	for key, rev := range revs {
		if _, err := s.Delete(ctx, key, rev); err != nil {
			t.Fatalf("delete in a full store: %v", err)
		}
	}
	eventually(t, "writes go on", func() bool { _, err := s.Create(ctx, "/small", nil); return err == nil })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// History older than KeepFor goes by itself; what is live stays.
func TestHistoryIsForgotten(t *testing.T) {
	for name, opts := range map[string]Options{
		"by age":    {UnsafeNoFsync: true, KeepFor: 200 * time.Millisecond},
		"by number": {UnsafeNoFsync: true, KeepFor: time.Hour, KeepRevisions: 50},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, opts)
			ctx := t.Context()
			first, err := s.Create(ctx, "/a", []byte("0"))
			if err != nil {
				t.Fatal(err)
			}
			rev := first
			eventually(t, "the first revision is compacted", func() bool {
				for range 20 {
					if rev, err = s.Update(ctx, "/a", []byte("1"), rev); err != nil {
						t.Fatal(err)
					}
				}
				_, err := s.List(ctx, "/", store.ListOptions{Revision: first})
				return errors.Is(err, store.ErrCompacted)
			})
			if kv, _, err := s.Get(ctx, "/a"); err != nil || kv.ModRevision != rev {
				t.Fatalf("%+v, %v", kv, err)
			}
			if opts.KeepFor < time.Hour {
				eventually(t, "the keeper sleeps", func() bool { return !s.keeper.awake.Load() })
			}
		})
	}
}

// An idle store writes nothing to disk.
func TestIdleWritesNothing(t *testing.T) {
	s := open(t, Options{})
	if _, err := s.Create(t.Context(), "/a", nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // etcd commits, and settles its version
	before := bytesWritten(t)
	time.Sleep(2 * time.Second)
	if n := bytesWritten(t) - before; n != 0 {
		t.Fatalf("%d bytes within 2 s of idleness", n)
	}
}

func bytesWritten(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			fmt.Sscan(v, &n)
		}
	}
	return n
}

// What etcdctl does: read over the client port with a certificate of the CA;
// nobody else can.
func TestClientPort(t *testing.T) {
	ca, server := certificates(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	s := open(t, Options{UnsafeNoFsync: true, ClientAddr: "127.0.0.1:0", TLS: &tls.Config{
		Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}})
	if _, err := s.Create(t.Context(), "/registry/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, certs := range map[string][]tls.Certificate{"with": {server}, "without": nil} {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.ClientAddr().String()}, DialTimeout: 2 * time.Second,
			TLS: &tls.Config{RootCAs: pool, Certificates: certs}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		r, err := c.Get(ctx, "/registry/", clientv3.WithPrefix())
		if name == "with" && (err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "x") {
			t.Errorf("with a certificate: %+v, %v", r, err)
		}
		if name == "without" && err == nil {
			t.Error("a client without a certificate can read")
		}
		cancel()
		c.Close()
	}
}

func TestClientPortIsRefusedWhenOpen(t *testing.T) {
	mutual := &tls.Config{ClientCAs: x509.NewCertPool(), ClientAuth: tls.RequireAndVerifyClientCert}
	for name, opts := range map[string]Options{
		"no TLS":                 {ClientAddr: "127.0.0.1:0"},
		"no client certificates": {ClientAddr: "127.0.0.1:0", TLS: &tls.Config{}},
		"not loopback":           {ClientAddr: "0.0.0.0:0", TLS: mutual},
		"a name":                 {ClientAddr: "localhost:0", TLS: mutual},
	} {
		opts.Dir = t.TempDir()
		if s, err := New(t.Context(), opts); err == nil {
			s.Close()
			t.Errorf("%s: the port was opened", name)
		}
		// What failed to start holds no lock.
		s, err := New(t.Context(), Options{Dir: opts.Dir, UnsafeNoFsync: true})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.Close()
	}
}

func certificates(t *testing.T) (ca *x509.Certificate, leaf tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "store"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return ca, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) store.Store { return open(b, Options{}) })
}

// BenchmarkStart is from nothing to the first acknowledged write.
func BenchmarkStart(b *testing.B) {
	for range b.N {
		s := open(b, Options{})
		if _, err := s.Create(b.Context(), "/a", nil); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// The election at a start comes while the entries of before are applied; each start
// has many.
func TestManyRestarts(t *testing.T) {
	dir := t.TempDir()
	for i := range 25 {
		st, err := New(t.Context(), Options{Dir: dir, UnsafeNoFsync: true, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		for k := range 20 {
			if _, err := st.Create(t.Context(), fmt.Sprintf("/%d/%d", i, k), []byte("value")); err != nil {
				t.Fatal(err)
			}
		}
		st.Close()
	}
}
