package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/machines"
)

const (
	// joinWithin is how long a node of this machine may take to be ready.
	joinWithin = time.Minute
	stopWithin = 20 * time.Second
)

// MostNodes is how many nodes one machine may have.
const MostNodes = machines.Most

// Folders are the data folders of a cluster's nodes on this machine.
func Folders(data string) []string { return append([]string{data}, machines.Folders(data)...) }

// startNodes starts the other nodes of this machine, each a process of its own, and
// returns when they are ready.
func (c *cluster) startNodes(ctx context.Context) error {
	c.Progress(fmt.Sprintf("starting %d more nodes", c.Nodes-1))
	var wg sync.WaitGroup
	errs := make([]error, c.Nodes+1)
	for n := 2; n <= c.Nodes; n++ {
		wg.Go(func() {
			if err := c.startNode(ctx, n); err != nil {
				errs[n] = fmt.Errorf("start node %d: %w", n, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *cluster) startNode(ctx context.Context, n int) error {
	folder := machines.Folder(c.DataDir, n)
	if err := machines.Make(c.DataDir, n); err != nil {
		return err
	}
	switch _, err := instance.Find(folder); {
	case err == nil:
		return nil // it outlived the server, and has found it again
	case !errors.Is(err, instance.ErrNone):
		return err
	}
	inv, err := Invite(ctx, c.DataDir, 10*time.Minute)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	args := []string{"--data-dir", folder, "--registries", c.Registries, "agent", "--server", inv.Server, "--token", inv.Token, "--ca-hash", inv.CAHash,
		"--node-name", fmt.Sprintf("%s-%d", c.NodeName, n), "--node-ip", machines.Address(n).String()}
	err = machines.In(c.DataDir, n, func() error { return instance.Detach(ctx, folder, args, func(string) {}) })
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("it was not ready within %v: see %s", joinWithin, instance.Log(folder))
	}
	return err
}

// stopNodes stops the processes of the other nodes; their containers run on.
func stopNodes(data string) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	var wg sync.WaitGroup
	folders := machines.Folders(data)
	errs := make([]error, len(folders))
	for i, folder := range folders {
		wg.Go(func() {
			if _, err := instance.Stop(ctx, folder); err != nil && !errors.Is(err, instance.ErrNone) {
				errs[i] = fmt.Errorf("stop node %s: %w", filepath.Base(folder), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
