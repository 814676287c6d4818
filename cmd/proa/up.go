package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/proa-dev/proa/internal/cluster"
	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/kubeconfig"
)

func upCommand(data, registries *string) *cobra.Command {
	var cfg cluster.Config
	var level, file string
	var detach, noFile bool
	var timeout time.Duration
	cmd := &cobra.Command{Use: "up", Short: "Run a cluster on this machine until Ctrl-C; its containers run on", Args: cobra.NoArgs}
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:6443", "address of the API server (use 0.0.0.0:6443 to let other machines and pods in)")
	f.StringVar(&cfg.NodeName, "node-name", "", "name of the node (default: the host's)")
	f.StringVar(&cfg.NodeIP, "node-ip", "", "address of the node (default: that of the first interface)")
	f.IntVar(&cfg.Nodes, "nodes", 0, "how many nodes to run on this machine, each in a network of its own (default: as many as before, or one)")
	f.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	f.BoolVarP(&detach, "detach", "d", false, "return when the node is ready, and leave the cluster running in the background")
	f.DurationVar(&timeout, "timeout", 2*time.Minute, "how long --detach waits")
	f.StringVar(&file, "kubeconfig", "", "kubeconfig to write the context proa into (default: that of KUBECONFIG, or ~/.kube/config)")
	f.BoolVar(&noFile, "no-kubeconfig", false, "leave the user's kubeconfig alone")
	cmd.MarkFlagsMutuallyExclusive("kubeconfig", "no-kubeconfig")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if cfg.Logger, err = logger(cmd, level); err != nil {
			return err
		}
		if cfg.Nodes < 0 || cfg.Nodes > cluster.MostNodes {
			return fmt.Errorf("--nodes %d: from 1 to %d", cfg.Nodes, cluster.MostNodes)
		}
		if cfg.DataDir, err = filepath.Abs(*data); err != nil {
			return err
		}
		cfg.Version, cfg.Registries, cfg.Owner = version, *registries, kubeconfig.Invoker()
		if cfg.Kubeconfig = file; file == "" && !noFile {
			cfg.Kubeconfig = kubeconfig.Path(os.Getenv("KUBECONFIG"), cfg.Owner)
		}
		show := newProgress(cmd.OutOrStdout())
		if detach {
			return inBackground(cmd.Context(), cfg, timeout, show)
		}
		to := instance.Background()
		cfg.Progress = func(step string) { show.say(step); to.Step(step) }
		err = cluster.Run(cmd.Context(), cfg, func() { show.done("%s", usable(cfg)); to.Ready() })
		if err != nil {
			show.end("✗")
			to.Fail(err)
		} else if cmd.Context().Err() != nil {
			show.done("stopped; the containers run on, `proa reset` removes them")
		}
		return err
	}
	return cmd
}

// usable says that the cluster can be used, and how.
func usable(cfg cluster.Config) string {
	how := "proa kubectl get pods -A"
	if cfg.DataDir != defaultData {
		how = "proa --data-dir " + cfg.DataDir + " kubectl get pods -A"
	}
	if kubeconfig.HasContext(cfg.Kubeconfig) {
		how += ", or kubectl --context " + kubeconfig.Name
	} else {
		how += ", or export KUBECONFIG=" + cluster.Kubeconfig(cfg.DataDir)
	}
	return "the node is ready; use it with: " + how
}

func inBackground(ctx context.Context, cfg cluster.Config, timeout time.Duration, show *progress) error {
	switch info, err := instance.Find(cfg.DataDir); {
	case err == nil:
		show.done("a cluster runs on %s already, as process %d", cfg.DataDir, info.PID)
		return nil
	case !errors.Is(err, instance.ErrNone):
		return err
	}
	var args []string
	for _, a := range os.Args[1:] {
		if a != "-d" && a != "--detach" && !strings.HasPrefix(a, "--detach=") {
			args = append(args, a)
		}
	}
	bound, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := instance.Detach(bound, cfg.DataDir, args, show.say); err != nil {
		show.end("✗")
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("the node was not ready within %v, so the cluster was stopped: see %s", timeout, instance.Log(cfg.DataDir))
		}
		return err
	}
	show.done("%s", usable(cfg))
	show.done("its log: %s", instance.Log(cfg.DataDir))
	return nil
}

func downCommand(data *string) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Stop the cluster; its containers and data stay", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(*data)
			if err != nil {
				return err
			}
			if err := stop(cmd, dir); !errors.Is(err, instance.ErrNone) {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "no cluster runs on", dir)
			return nil
		}}
}

func stop(cmd *cobra.Command, dir string) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	if _, err := instance.Stop(ctx, dir); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "stopped; the containers run on, `proa reset` removes them")
	return nil
}

func resetCommand(data *string) *cobra.Command {
	return &cobra.Command{Use: "reset", Short: "Stop and remove the cluster with all its containers and data", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(*data)
			if err != nil {
				return err
			}
			if err := stop(cmd, dir); err != nil && !errors.Is(err, instance.ErrNone) {
				return err
			}
			return cluster.Reset(dir)
		}}
}
