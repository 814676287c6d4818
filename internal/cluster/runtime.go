package cluster

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/preflight"
	"github.com/proa-dev/proa/internal/network/podnet"
	"github.com/proa-dev/proa/internal/runtime"
)

// RuntimeConfig says how to run the container runtime alone.
type RuntimeConfig struct {
	DataDir    string
	Socket     string // "": Socket(DataDir)
	Pods       netip.Prefix
	Registries string
	Version    string
	Logger     *slog.Logger
}

// RunRuntime serves the CRI on a unix socket until ctx ends; ready is called when it
// can be used. Containers run on when it returns.
func RunRuntime(ctx context.Context, cfg RuntimeConfig, ready func(socket string)) error {
	if err := preflight.Host(ctx).Check(); err != nil {
		return err
	}
	if cfg.Socket == "" {
		cfg.Socket = Socket(cfg.DataDir)
	}
	release, err := instance.Acquire(cfg.DataDir, instance.Info{Version: cfg.Version, Started: time.Now()})
	if err != nil {
		return err
	}
	defer release()
	net, err := podnet.Open(networkDir(cfg.DataDir), cfg.Pods, cfg.Pods)
	if err != nil {
		return err
	}
	rt, err := newRuntime(cfg.DataDir, cfg.Registries, cfg.Version, net, cfg.Logger)
	if err != nil {
		return err
	}
	defer rt.Close()
	return rt.Serve(ctx, cfg.Socket, func() { ready(cfg.Socket) })
}

// newRuntime opens the container runtime of a data folder.
func newRuntime(data, registries, version string, net *podnet.Network, log *slog.Logger) (*runtime.Server, error) {
	store, err := Images(data, registries, log)
	if err != nil {
		return nil, err
	}
	return runtime.New(runtime.Config{State: runtimeDir(data), Root: filepath.Join(runtimeDir(data), "root"), Images: store,
		Network: podNetwork{net}, CgroupParent: cgroupRoot(data) + "/proa", Version: version, Logger: log})
}
