package loop

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// An idle loop sleeps: nothing wakes it in an hour, and what is asked for later
// still comes in time.
func TestAnIdleLoopSetsNoTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		worked := make(chan time.Time, 1)
		l := New("test", slog.New(slog.DiscardHandler), func(context.Context, string) error { worked <- time.Now(); return nil })
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx, 1) }()
		start := time.Now()
		l.After("a", 90*time.Minute)
		if got := (<-worked).Sub(start); got != 90*time.Minute {
			t.Errorf("worked after %v, want 90m", got)
		}
		if c := (quiet{}).NewTicker(time.Second).C(); c != nil {
			t.Error("the queue's clock ticks")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
