package rest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// A watch without timeoutSeconds lasts between one and two of these.
const watchLeast = 30 * time.Minute

// initialMost bounds the initial events that one Next returns.
const initialMost = 500

// watcher is the Watch of a storage.
type watcher struct {
	s        *storage
	m        *matcher
	cursor   *cache.Watcher
	raw      []*cache.Event
	initial  *cache.Snapshot // state still to be sent as ADDED
	from     string
	revision int64 // of initial
	endMark  bool  // a bookmark ends the initial events
	after    int64 // older events are not for this watch
	sent     int64 // revision of the newest event handed out

	timer *time.Timer
	once  sync.Once
}

func (s *storage) Watch(ctx context.Context, namespace string, opts ListOptions) (Watch, error) {
	if err := checkListOptions(&opts.ListOptions, true); err != nil {
		return nil, err
	}
	m, err := s.matcher(namespace, opts.Labels, opts.Fields)
	if err != nil {
		return nil, err
	}
	wanted, err := parseRevision(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := &watcher{s: s, m: m}
	start := cache.WatchOptions{Scope: m.scope}
	sendInitial := wanted == 0
	if opts.SendInitialEvents != nil {
		sendInitial = *opts.SendInitialEvents
		w.endMark = sendInitial && opts.AllowWatchBookmarks
	}
	if sendInitial || wanted == 0 {
		if err := s.waitFor(ctx, opts.ResourceVersion); err != nil {
			return nil, err
		}
	} else {
		start.After = wanted
	}
	cursor, snap, revision, err := s.cache.Watch(start)
	if err != nil {
		return nil, s.storeError(expired(err), "")
	}
	w.cursor = cursor
	switch {
	case sendInitial:
		w.initial, w.revision = snap, revision
		w.sent, w.after = 0, revision
	case wanted == 0:
		w.after, w.sent = revision, revision
	default:
		w.after, w.sent = wanted, wanted
	}
	if opts.AllowWatchBookmarks {
		cursor.WantBookmarks()
	}
	lasts := watchLeast + rand.N(watchLeast)
	if opts.TimeoutSeconds != nil && *opts.TimeoutSeconds > 0 {
		lasts = time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	w.timer = time.NewTimer(lasts)
	return w, nil
}

func (w *watcher) Stop() {
	w.once.Do(func() {
		w.timer.Stop()
		w.cursor.Stop()
	})
}

func (w *watcher) Next(ctx context.Context) ([]Event, error) {
	if w.initial != nil {
		if out, err := w.nextInitial(); err != nil || len(out) > 0 {
			return out, err
		}
	}
	if w.endMark {
		w.endMark = false
		w.sent = max(w.sent, w.revision)
		return []Event{{Type: string(watch.Bookmark), Revision: w.sent, InitialEventsEnd: true}}, nil
	}
	for {
		reached := w.s.reg.set.Revision() // everything up to here is in the history
		raw, err := w.cursor.Poll(w.raw[:0])
		w.raw = raw
		if errors.Is(err, cache.ErrOver) {
			return nil, io.EOF
		}
		if err != nil {
			return nil, expired(err)
		}
		if len(raw) > 0 {
			out, err := w.translate(raw)
			clear(raw)
			if err != nil {
				return nil, err
			}
			if len(out) > 0 {
				return out, nil
			}
			continue
		}
		if w.cursor.BookmarkDue() {
			w.sent = max(w.sent, reached)
			return []Event{{Type: string(watch.Bookmark), Revision: w.sent}}, nil
		}
		select {
		case <-w.cursor.Wake():
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.timer.C:
			return nil, io.EOF
		}
	}
}

// nextInitial returns the next part of the state that the watch begins with.
func (w *watcher) nextInitial() ([]Event, error) {
	var out []Event
	var failed error
	more := false
	if !w.m.none {
		w.initial.Scan(w.m.scope, w.from, func(e *cache.Entry) bool {
			if len(out) == initialMost {
				w.from, more = e.Key, true
				return false
			}
			ok, err := w.m.matches(e)
			if err != nil {
				failed = err
				return false
			}
			if ok {
				seen, err := w.s.see(e)
				if err != nil {
					failed = err
					return false
				}
				out = append(out, Event{Type: string(watch.Added), Entry: seen, Revision: e.Revision})
				w.sent = max(w.sent, e.Revision)
			}
			return true
		})
	}
	if failed != nil {
		return nil, failed
	}
	if !more {
		w.initial = nil
		w.sent = max(w.sent, w.revision)
	}
	return out, nil
}

// translate makes what this watch sees of the resource's changes.
func (w *watcher) translate(raw []*cache.Event) ([]Event, error) {
	out := make([]Event, 0, len(raw))
	for _, e := range raw {
		if e.Revision <= w.after {
			continue
		}
		w.sent = e.Revision
		is, was := false, false
		var err error
		if e.Type != cache.Deleted {
			if is, err = w.m.matches(e.Entry); err != nil {
				return nil, err
			}
		}
		if e.Prev != nil {
			if was, err = w.m.matches(e.Prev); err != nil {
				return nil, err
			}
		}
		typ, entry := watch.Added, e.Entry
		switch {
		case is && was:
			typ = watch.Modified
		case is:
		case was:
			typ, entry = watch.Deleted, e.PrevNow()
		default:
			continue
		}
		if entry, err = w.s.see(entry); err != nil {
			return nil, err
		}
		out = append(out, Event{Type: string(typ), Entry: entry, Revision: e.Revision})
	}
	return out, nil
}
