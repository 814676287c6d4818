package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/proa-dev/proa/internal/cluster"
	"github.com/proa-dev/proa/internal/cluster/instance"
)

func agentCommand(data, registries *string) *cobra.Command {
	var cfg cluster.AgentConfig
	var level string
	cmd := &cobra.Command{Use: "agent", Short: "Run a node of a cluster that another machine serves, until Ctrl-C; its containers run on", Args: cobra.NoArgs,
		Long: "Run a node of a cluster that another machine serves.\n\nThe first time, --server, --token and --ca-hash are needed: `proa token create` on the server prints\nthem. From then on the machine has a certificate of its own, which it renews."}
	f := cmd.Flags()
	f.StringVar(&cfg.Server, "server", "", "URL of the API server (default: the one that was joined)")
	f.StringVar(&cfg.Token, "token", "", "bootstrap token")
	f.StringVar(&cfg.CAHash, "ca-hash", "", "hash of the cluster's authority: sha256:…")
	f.StringVar(&cfg.NodeName, "node-name", "", "name of the node (default: the host's)")
	f.StringVar(&cfg.NodeIP, "node-ip", "", "address of the node (default: that by which the server is reached)")
	f.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if cfg.Logger, err = logger(cmd, level); err != nil {
			return err
		}
		if cfg.DataDir, err = filepath.Abs(*data); err != nil {
			return err
		}
		cfg.Version, cfg.Registries = version, *registries
		show, to := newProgress(cmd.OutOrStdout()), instance.Background()
		cfg.Progress = func(step string) { show.say(step); to.Step(step) }
		err = cluster.RunAgent(cmd.Context(), cfg, func() { show.done("the node is ready"); to.Ready() })
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

func tokenCommand(data *string) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Let machines join the cluster"}
	var life time.Duration
	var output string
	create := &cobra.Command{Use: "create", Short: "Make a token, and print the command that joins with it", Args: cobra.NoArgs}
	create.Flags().DurationVar(&life, "ttl", 24*time.Hour, "how long the token can be used")
	create.Flags().StringVarP(&output, "output", "o", "", "json, or empty for the command")
	create.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := filepath.Abs(*data)
		if err != nil {
			return err
		}
		if output != "" && output != "json" {
			return fmt.Errorf("--output %q: use json, or leave it out", output)
		}
		inv, err := cluster.Invite(cmd.Context(), dir, life)
		if err != nil {
			return err
		}
		if output == "json" {
			return writeJSON(cmd, inv)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "proa agent --server %s --token %s --ca-hash %s\n", inv.Server, inv.Token, inv.CAHash)
		return nil
	}
	cmd.AddCommand(create)
	return cmd
}
