package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/proa-dev/proa/internal/cluster"
)

func statusCommand(data *string) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Say whether a cluster runs, and how it is", Args: cobra.NoArgs,
		Long: "Say whether a cluster runs, and how it is. The exit code is 0 when it runs and its nodes are ready."}
	output := cmd.Flags().StringP("output", "o", "", "json, or empty for text")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "" && *output != "json" {
			return fmt.Errorf("--output %q: use json, or leave it out", *output)
		}
		dir, err := filepath.Abs(*data)
		if err != nil {
			return err
		}
		s, err := cluster.Look(cmd.Context(), dir)
		if err != nil {
			return err
		}
		if *output == "json" {
			err = writeJSON(cmd, s)
		} else {
			err = writeStatus(cmd, s)
		}
		if err == nil && s.Problem != "" {
			return errors.New(s.Problem)
		}
		return err
	}
	return cmd
}

func writeStatus(cmd *cobra.Command, s cluster.Status) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+":\t"+format+"\n", args...) }
	line("process", "%d, for %s", s.PID, time.Since(s.Started).Round(time.Second))
	line("address", "%s", s.Server)
	line("version", "proa %s, Kubernetes %s", s.Version, s.Kubernetes)
	for _, n := range s.Nodes {
		state := "Ready"
		if !n.Ready {
			state = "NotReady: " + n.Reason
		}
		line("node", "%s, %s, %s, %s, %s", n.Name, state, n.Address, n.Version, n.Runtime)
	}
	var phases []string
	for _, p := range slices.Sorted(maps.Keys(s.Pods)) {
		phases = append(phases, fmt.Sprintf("%d %s", s.Pods[p], p))
	}
	if len(phases) == 0 {
		phases = []string{"none"}
	}
	line("pods", "%s (%d ready)", strings.Join(phases, ", "), s.ReadyPods)
	line("data folder", "%s", s.DataDir)
	line("kubeconfig", "%s", cluster.Kubeconfig(s.DataDir))
	line("CRI socket", "%s", cluster.Socket(s.DataDir))
	return w.Flush()
}
