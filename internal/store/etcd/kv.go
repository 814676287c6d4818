package etcd

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/raft/v3"

	"github.com/proa-dev/proa/internal/store"
)

// Get implements store.Store.
//
// Reads of the only member are linearizable without asking raft: a write is
// acknowledged after it was applied here, and New waits until all that was in
// the log is.
func (s *Store) Get(ctx context.Context, key string) (store.KV, int64, error) {
	if err := s.enter(ctx); err != nil {
		return store.KV{}, 0, err
	}
	defer s.leave()
	r, err := s.server.KV().Range(ctx, []byte(key), nil, mvcc.RangeOptions{})
	if err != nil {
		return store.KV{}, 0, s.readErr(err)
	}
	if len(r.KVs) == 0 {
		return store.KV{}, r.Rev, store.ErrNotFound
	}
	return fromKV(r.KVs[0]), r.Rev, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, opts store.ListOptions) (store.ListResult, error) {
	if err := s.enter(ctx); err != nil {
		return store.ListResult{}, err
	}
	defer s.leave()
	from, end := keyRange(prefix)
	if opts.From > prefix {
		from = []byte(opts.From)
	}
	limit := max(opts.Limit, 0)
	ro := mvcc.RangeOptions{Rev: opts.Revision, FastKeysOnly: opts.KeysOnly}
	if limit > 0 {
		ro.Limit = int64(limit) + 1 // one more tells whether there is more
	}
	r, err := s.server.KV().Range(ctx, from, end, ro)
	if err != nil {
		return store.ListResult{}, s.readErr(err)
	}
	out := store.ListResult{Revision: r.Rev}
	if opts.Revision > 0 {
		out.Revision = opts.Revision
	}
	kvs := r.KVs
	if limit > 0 && len(kvs) > limit {
		kvs, out.More = kvs[:limit], true
	}
	out.KVs = make([]store.KV, len(kvs))
	for i, kv := range kvs {
		out.KVs[i] = fromKV(kv)
	}
	return out, nil
}

// keyRange is [from, end) of all keys with a prefix, as mvcc wants it: an end
// that is empty but not nil stands for the end of all keys.
func keyRange(prefix string) (from, end []byte) {
	from, end = []byte(prefix), []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return from, end[:i+1]
		}
	}
	if len(from) == 0 {
		from = []byte{0}
	}
	return from, []byte{}
}

func fromKV(kv *mvccpb.KeyValue) store.KV {
	return store.KV{Key: string(kv.Key), Value: kv.Value, ModRevision: kv.ModRevision, CreateRevision: kv.CreateRevision}
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte) (int64, error) {
	return s.write(ctx, key, 0, put(key, value), putCost(key, value))
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, key string, value []byte, revision int64) (int64, error) {
	if revision <= 0 {
		return 0, s.noSuchRevision(ctx, key)
	}
	return s.write(ctx, key, revision, put(key, value), putCost(key, value))
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, revision int64) (int64, error) {
	if revision <= 0 {
		return 0, s.noSuchRevision(ctx, key)
	}
	return s.write(ctx, key, revision, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}}, 0)
}

// noSuchRevision is the conflict of a write guarded by a revision that no key
// has. etcd itself takes 0 for "there is no such key".
func (s *Store) noSuchRevision(ctx context.Context, key string) error {
	kv, _, err := s.Get(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return &store.ConflictError{Key: key}
	case err != nil:
		return err
	}
	return &store.ConflictError{Key: key, Current: &kv}
}

func put(key string, value []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: value}}}
}

// putCost is what a put adds to the database, with what etcd keeps beside it.
func putCost(key string, value []byte) int { return 256 + len(key) + len(value) }

// write does op if the key's ModRevision is expected (0: no such key). cost is
// what it adds to the database.
func (s *Store) write(ctx context.Context, key string, expected int64, op *pb.RequestOp, cost int) (int64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.leave()
	if cost > maxRequest {
		return 0, fmt.Errorf("write %s: %w", key, store.ErrTooLarge)
	}
	if err := s.diskRoom(cost); err != nil {
		return 0, fmt.Errorf("write %s: %w", key, err)
	}
	if cost > 0 && !s.hasRoom(cost) {
		s.keeper.makeRoom()
		return 0, fmt.Errorf("write %s: %w", key, store.ErrNoSpace)
	}
	r, err := s.server.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Result: pb.Compare_EQUAL, Target: pb.Compare_MOD, Key: []byte(key),
			TargetUnion: &pb.Compare_ModRevision{ModRevision: expected}}},
		Success: []*pb.RequestOp{op},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}},
	})
	if err != nil {
		return 0, s.writeErr(ctx, "write "+key, err)
	}
	if r.Succeeded {
		s.keeper.wrote(r.Header.Revision, s.opts.KeepRevisions)
		return r.Header.Revision, nil
	}
	conflict := &store.ConflictError{Key: key}
	if found := r.Responses[0].GetResponseRange(); len(found.GetKvs()) > 0 {
		kv := fromKV(found.Kvs[0])
		conflict.Current = &kv
	}
	return 0, conflict
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.leave()
	return s.server.KV().Rev(), nil
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	return s.compact(ctx, revision, false)
}

// compact returns when the space is free too, if physical. Callers are within a
// call or within wg.
func (s *Store) compact(ctx context.Context, revision int64, physical bool) error {
	_, err := s.server.Compact(ctx, &pb.CompactionRequest{Revision: revision, Physical: physical})
	return s.writeErr(ctx, "compact the store", err)
}

func (s *Store) readErr(err error) error {
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		return store.ErrFutureRevision
	}
	return fmt.Errorf("read the store: %w", err)
}

// writeErr turns the error of a proposal into the store's.
func (s *Store) writeErr(ctx context.Context, doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mvcc.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		return store.ErrFutureRevision
	case errors.Is(err, etcderrors.ErrRequestTooLarge):
		return fmt.Errorf("%s: %w", doing, store.ErrTooLarge)
	case errors.Is(err, etcderrors.ErrTooManyRequests), errors.Is(err, etcderrors.ErrCorrupt):
		return fmt.Errorf("%s: %w", doing, err) // refused before it was proposed or applied
	case errors.Is(err, etcderrors.ErrNoSpace):
		// Beyond the limit of etcd itself, which refuses some writes after it has
		// applied them.
		s.keeper.makeRoom()
		return fmt.Errorf("%s: %w: %w", doing, store.ErrUnknown, store.ErrNoSpace)
	case errors.Is(err, etcderrors.ErrStopped), errors.Is(err, raft.ErrStopped):
		return fmt.Errorf("%s: %w: %w", doing, store.ErrClosed, store.ErrUnknown)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w: %w", doing, store.ErrUnknown, context.Cause(ctx))
	}
	// Whatever else ends a proposal (a time-out) does not say whether it was applied.
	return fmt.Errorf("%s: %w: %w", doing, store.ErrUnknown, err)
}
