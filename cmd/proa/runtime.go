package main

import (
	"net/netip"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/proa-dev/proa/internal/cluster"
)

func runtimeCommand(data, registries *string) *cobra.Command {
	var level, pods string
	cfg := cluster.RuntimeConfig{}
	cmd := &cobra.Command{Use: "runtime", Short: "Run the container runtime alone, for crictl or another kubelet, until Ctrl-C; its containers run on", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&cfg.Socket, "socket", "", "path of the CRI socket (default: cri.sock in the data folder)")
	cmd.Flags().StringVar(&pods, "pod-cidr", "10.88.0.0/16", "addresses of pods")
	cmd.Flags().StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if cfg.Logger, err = logger(cmd, level); err != nil {
			return err
		}
		if cfg.DataDir, err = filepath.Abs(*data); err != nil {
			return err
		}
		if cfg.Pods, err = netip.ParsePrefix(pods); err != nil {
			return err
		}
		cfg.Version, cfg.Registries = version, *registries
		show := newProgress(cmd.OutOrStdout())
		return cluster.RunRuntime(cmd.Context(), cfg, func(socket string) { show.done("serving the CRI: export CONTAINER_RUNTIME_ENDPOINT=unix://%s", socket) })
	}
	return cmd
}
