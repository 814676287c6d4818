package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/store"
)

// keeper bounds the database: it forgets history that is old, and at the size
// limit makes room. It sleeps while nothing is written.
//
// Twice in KeepFor, as long as there are writes, it marks the newest revision
// and compacts to the mark before the last one, which is at least KeepFor old by
// the end of its second half. Every KeepRevisions writes count as such a time.
type keeper struct {
	due   chan struct{} // something was written since the keeper went to sleep
	many  chan struct{} // KeepRevisions were written since the last mark
	room  chan struct{} // a write found no space
	awake atomic.Bool   // due was sent
	mark  atomic.Int64  // the newest mark
	full  atomic.Bool   // writes are refused
}

// retryRoom is how long writes that keep failing wait for the next attempt.
const retryRoom = time.Second

func newKeeper() keeper {
	return keeper{due: make(chan struct{}, 1), many: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// wrote tells of a write.
func (k *keeper) wrote(revision, keepRevisions int64) {
	if !k.awake.Load() && k.awake.CompareAndSwap(false, true) {
		poke(k.due)
	}
	if revision-k.mark.Load() >= keepRevisions {
		poke(k.many)
	}
	if k.full.Load() {
		poke(k.room) // a delete may have made some
	}
}

func (k *keeper) makeRoom() {
	k.full.Store(true)
	poke(k.room)
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// keep runs until the store closes.
func (s *Store) keep() {
	k := &s.keeper
	half := time.NewTimer(s.opts.KeepFor / 2)
	half.Stop()
	defer half.Stop()
	retry := time.NewTimer(retryRoom)
	retry.Stop()
	defer retry.Stop()

	older := int64(0) // what an earlier run wrote is kept as long as if written now
	k.mark.Store(s.server.KV().Rev())
	room, tried, attempts := k.room, int64(-1), 0
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-k.due:
			half.Reset(s.opts.KeepFor / 2)
		case <-k.many:
			older = s.advance(older)
			half.Reset(s.opts.KeepFor / 2)
		case <-half.C:
			older = s.advance(older)
			if s.hasHistory() {
				half.Reset(s.opts.KeepFor / 2)
				break
			}
			k.awake.Store(false)
			if s.hasHistory() && k.awake.CompareAndSwap(false, true) {
				poke(k.due) // written between the two
			}
		case <-room:
			rev := s.server.KV().Rev()
			if rev != tried {
				tried, attempts = rev, 0
			}
			// The same fails again until something is deleted; but what a reader held
			// at the first attempt counted as in use.
			if attempts < 2 {
				switch err := s.makeRoom(rev, attempts > 0); {
				case err == nil:
					k.full.Store(false)
					tried = -1
				case errors.Is(err, store.ErrNoSpace):
					attempts++
					s.log.Error("the store is full", "err", err, "limit", s.opts.QuotaBytes)
				case s.ctx.Err() == nil:
					s.log.Error("make room in the full store", "err", err)
				}
			}
			// Writers that go on failing must not keep this loop busy.
			room = nil
			retry.Reset(retryRoom)
		case <-retry.C:
			room = k.room
		}
	}
}

// advance compacts to the older mark, and makes the newest revision the newer one.
func (s *Store) advance(older int64) (newOlder int64) {
	newer := s.keeper.mark.Load()
	s.keeper.mark.Store(s.server.KV().Rev())
	if older > s.server.KV().FirstRev() {
		if err := s.compact(s.ctx, older, false); err != nil && !errors.Is(err, store.ErrCompacted) && s.ctx.Err() == nil {
			s.log.Warn("compact the store", "revision", older, "err", err)
		}
	}
	return newer
}

func (s *Store) hasHistory() bool {
	kv := s.server.KV()
	return kv.Rev() > max(kv.FirstRev(), 1)
}

// diskRoom returns store.ErrDiskFull when a write of that cost (0: a delete) would
// take from the disk what etcd itself may need. Asking costs less than 1 µs.
func (s *Store) diskRoom(cost int) error {
	keep := s.opts.DiskReserve
	if cost == 0 {
		keep /= 8
	}
	var fs unix.Statfs_t
	if unix.Statfs(s.opts.Dir, &fs) != nil {
		return nil // the write itself will tell
	}
	if free := int64(fs.Bfree) * int64(fs.Bsize); free < keep {
		return fmt.Errorf("%w: %d MiB are free in %s, %d are needed", store.ErrDiskFull, free>>20, s.opts.Dir, keep>>20)
	}
	return nil
}

// hasRoom tells whether a write may add so many bytes.
func (s *Store) hasRoom(cost int) bool {
	if s.server.Backend().Size()+int64(cost) > s.opts.QuotaBytes {
		return false
	}
	// etcd's own alarm is raised by clients of the port only, and outlives a restart.
	for _, a := range s.server.Alarms() {
		if a.Alarm == pb.AlarmType_NOSPACE {
			return false
		}
	}
	return true
}

// makeRoom forgets all history, gives the space back to the file system and
// clears etcd's alarm, so that writes can go on. It does not try in vain to
// shrink what is in use, unless forced. Errors: store.ErrNoSpace.
func (s *Store) makeRoom(revision int64, force bool) error {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	be := s.server.Backend()
	limit := s.opts.QuotaBytes - s.opts.QuotaBytes/50
	s.log.Warn("the store is at its size limit: compacting", "size", be.Size(), "limit", s.opts.QuotaBytes)
	// Twice: bbolt counts the pages that a commit freed as in use until the next.
	for _, rev := range []int64{revision - 1, revision} {
		if err := s.compact(ctx, rev, true); err != nil && !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
	if be.SizeInUse() > limit && !force {
		return fmt.Errorf("%d bytes in use: %w", be.SizeInUse(), store.ErrNoSpace)
	}
	if be.Size() > limit {
		start := time.Now()
		if err := s.server.Defragment(); err != nil {
			return fmt.Errorf("defragment: %w", err)
		}
		s.log.Info("defragmented the store", "size", be.Size(), "took", time.Since(start))
	}
	if be.Size() > limit {
		return fmt.Errorf("%d bytes after defragmentation: %w", be.Size(), store.ErrNoSpace)
	}
	return s.disarm(ctx)
}

func (s *Store) disarm(ctx context.Context) error {
	for _, a := range s.server.Alarms() {
		if a.Alarm != pb.AlarmType_NOSPACE {
			continue
		}
		if _, err := s.server.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: a.Alarm, MemberID: a.MemberID}); err != nil {
			return fmt.Errorf("clear etcd's space alarm: %w", err)
		}
	}
	return nil
}
