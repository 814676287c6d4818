package etcd

import (
	"context"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/proa-dev/proa/internal/store"
)

// compactEvery is how many writes make a compaction due; a store that is not
// written to is never woken.
const compactEvery = 5000

// compactor forgets history. It remembers which revision was the newest when it
// last looked, and once that was KeepFor ago and enough was written, compacts to
// it. At the size limit it compacts at once, gives the space back to the file
// system and lets writes in again.
type compactor struct {
	writes atomic.Int64
	due    chan struct{}
	urgent chan struct{}
}

func (c *compactor) start(s *Store) {
	c.due, c.urgent = make(chan struct{}, 1), make(chan struct{}, 1)
	s.wg.Go(func() { c.run(s) })
}

func (c *compactor) wrote() {
	if c.writes.Add(1)%compactEvery == 0 {
		poke(c.due)
	}
}

func (c *compactor) full() {
	if c.urgent != nil {
		poke(c.urgent)
	}
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (c *compactor) run(s *Store) {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-c.urgent:
			c.makeRoom(s)
			// Writers that go on failing would otherwise keep this loop busy.
			if !sleep(s.ctx, time.Second) {
				return
			}
		case <-c.due:
			mark := s.server.KV().Rev()
			timer := time.NewTimer(s.opts.KeepFor)
			select {
			case <-s.ctx.Done():
				timer.Stop()
				return
			case <-c.urgent:
				timer.Stop()
				c.makeRoom(s)
			case <-timer.C:
				if err := s.Compact(s.ctx, mark); err != nil && s.ctx.Err() == nil && err != store.ErrCompacted {
					s.log.Warn("compact the store", "revision", mark, "err", err)
				}
			}
		}
	}
}

func (c *compactor) makeRoom(s *Store) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	s.log.Warn("the store has reached its size limit: compacting", "limit", s.opts.QuotaBytes)
	if _, err := s.server.Compact(ctx, &pb.CompactionRequest{Revision: s.server.KV().Rev(), Physical: true}); err != nil && ctx.Err() == nil {
		s.log.Warn("compact the full store", "err", err)
	}
	if err := s.server.Defragment(); err != nil {
		s.log.Error("defragment the full store", "err", err)
		return
	}
	if s.server.Backend().Size() >= s.opts.QuotaBytes {
		s.log.Error("the store is full: delete objects or raise its limit", "limit", s.opts.QuotaBytes)
		return
	}
	_, err := s.server.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: uint64(s.server.MemberID())})
	if err != nil && ctx.Err() == nil {
		s.log.Error("let writes into the store again", "err", err)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
