//go:build bench

package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// start measures from the start of the process, on an empty data folder, to the
// first answer in which the node is Ready: keys and certificates are made anew.
func (b *bench) start(ctx context.Context) error {
	var took []time.Duration
	for range b.starts {
		s, err := b.up(ctx)
		if err != nil {
			return err
		}
		took = append(took, s.ready)
		s.stop()
	}
	m := median(took)
	b.note(finding{what: "start of the process to node Ready", vanilla: "8.3 s", goal: "2 s", here: seconds(m), spread: spread(took, seconds), ok: m <= 2*time.Second})
	return nil
}

// idleCost measures a cluster that nobody uses.
func (b *bench) idleCost(ctx context.Context) error {
	s, err := b.up(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := sleep(ctx, b.settle); err != nil {
		return err
	}
	var share, mib []float64
	const parts = 4
	for range parts {
		before := s.cpu()
		if err := sleep(ctx, b.idle/parts); err != nil {
			return err
		}
		share = append(share, float64(s.cpu()-before)/float64(b.idle/parts)*100)
		mib = append(mib, float64(rssOf(s.cmd.Process.Pid))/(1<<20))
	}
	m, c := mean(mib), mean(share)
	b.note(finding{what: "resident memory, idle, control plane and node", vanilla: "690 MiB", goal: "120 MiB", here: fmt.Sprintf("%.0f MiB", m), spread: ends(mib, "%.0f"), ok: m <= 120})
	b.note(finding{what: "CPU, idle, control plane and node", vanilla: "4.8% of a core", goal: "1%", here: fmt.Sprintf("%.2f%%", c), spread: ends(share, "%.2f"), ok: c <= 1})
	return nil
}

func (b *bench) size() error {
	info, err := os.Stat(b.binary)
	if err != nil {
		return err
	}
	mb := float64(info.Size()) / 1e6
	b.note(finding{what: "binary, stripped", vanilla: "500 MB in 7 programs", goal: "90 MB", here: fmt.Sprintf("%.0f MB in 1", mb), spread: "-", ok: mb <= 90})
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
