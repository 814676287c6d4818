// Package store is the contract of a revisioned key-value store: what the API
// server needs to keep a cluster's objects, and nothing of what they mean.
//
// A store has one revision counter. Every successful write takes the next
// revision; a revision is never given twice, not even across a crash. Keys are
// slash-separated paths ("/registry/pods/default/web"); values are opaque.
// Engines: etcd (embedded, durable) and memory (tests, simulation). Both pass
// the suite in storetest.
package store

import (
	"context"
	"errors"
	"fmt"
)

// KV is one key at one revision. Value is shared with the engine and with other
// readers and must not be written to.
type KV struct {
	Key            string
	Value          []byte
	ModRevision    int64 // revision of the last write of the key
	CreateRevision int64 // revision of the write that created the key
}

// EventType tells a write from a delete.
type EventType uint8

const (
	Put EventType = iota
	Delete
)

// Event is one change. For a Delete, KV.ModRevision is the revision of the
// delete and KV.Value is nil.
type Event struct {
	Type EventType
	KV   KV
	// Prev is the state before the change: nil when the key did not exist. It may
	// also be nil when Watch was asked not to carry it.
	Prev *KV
}

// Batch is what a watcher receives: events in revision order, and the revision
// up to which the watcher has now seen everything. Events is empty for a pure
// progress report.
type Batch struct {
	Events   []Event
	Revision int64
}

// ListOptions bounds a List. The zero value lists everything at the newest revision.
type ListOptions struct {
	Revision int64  // read at this revision; 0: the newest
	Limit    int    // at most so many keys; 0: all
	From     string // start at this key (inclusive); "": at the prefix
	KeysOnly bool
}

// ListResult is a consistent snapshot of a prefix.
type ListResult struct {
	KVs      []KV // sorted by key
	Revision int64
	More     bool // Limit cut the list
}

// Store is a revisioned key-value store. All methods may be called concurrently.
type Store interface {
	// Get returns a key's newest state and the store's revision at that read.
	// It is linearizable. Errors: ErrNotFound.
	Get(ctx context.Context, key string) (KV, int64, error)
	// List returns the keys with a prefix. Errors: ErrCompacted, ErrFutureRevision.
	List(ctx context.Context, prefix string, opts ListOptions) (ListResult, error)
	// Create writes a key that must not exist and returns the write's revision.
	// Errors: *ConflictError (with the existing KV).
	Create(ctx context.Context, key string, value []byte) (int64, error)
	// Update writes a key whose ModRevision must equal revision.
	// Errors: *ConflictError with the present state (Current nil: the key is gone).
	Update(ctx context.Context, key string, value []byte, revision int64) (int64, error)
	// Delete removes a key whose ModRevision must equal revision, and returns the
	// delete's revision. Errors: as Update.
	Delete(ctx context.Context, key string, revision int64) (int64, error)
	// Watch delivers every change under prefix with a revision greater than
	// after, in order and without gaps, until ctx ends or the watcher fails.
	// Errors: ErrCompacted when changes after `after` are no longer kept.
	Watch(ctx context.Context, prefix string, after int64) (Watcher, error)
	// Revision returns the newest revision (linearizable).
	Revision(ctx context.Context) (int64, error)
	// Compact forgets history up to and including revision. Errors: ErrCompacted, ErrFutureRevision.
	Compact(ctx context.Context, revision int64) error
	// Close stops the engine; calls under way fail with ErrClosed.
	Close() error
}

// Watcher is a running watch.
type Watcher interface {
	// Batches is closed when the watch ends; Err then says why (nil: ctx ended).
	Batches() <-chan Batch
	Err() error
}

var (
	ErrNotFound       = errors.New("store: key not found")
	ErrCompacted      = errors.New("store: revision has been compacted")
	ErrFutureRevision = errors.New("store: revision is newer than the store's")
	ErrClosed         = errors.New("store: closed")
	ErrNoSpace        = errors.New("store: size limit reached: delete objects or raise the limit")
	ErrDiskFull       = errors.New("store: the disk is nearly full: free some space")
	ErrTooLarge       = errors.New("store: value is larger than the store accepts")
	// ErrUnknown is returned when a write was sent but its outcome is not known
	// (a time-out): it may or may not have been applied, at most once.
	ErrUnknown = errors.New("store: outcome of the write is unknown")
)

// ConflictError says that a guarded write found another state than it expected.
type ConflictError struct {
	Key     string
	Current *KV // the state found; nil: no such key
}

func (e *ConflictError) Error() string {
	if e.Current == nil {
		return fmt.Sprintf("store: %s does not exist", e.Key)
	}
	return fmt.Sprintf("store: %s is at revision %d", e.Key, e.Current.ModRevision)
}
