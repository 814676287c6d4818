package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/proa-dev/proa/internal/cluster"
	"github.com/proa-dev/proa/internal/cluster/instance"
)

func statusCommand(data *string) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Say whether a cluster runs, and how it is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(*data)
			if err != nil {
				return err
			}
			info, err := instance.Find(dir)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "process:     %d, since %s\naddress:     %s\nversion:     proa %s, Kubernetes %s\ndata folder: %s\nkubeconfig:  %s\nCRI socket:  %s\n",
				info.PID, time.Since(info.Started).Round(time.Second), info.Server, info.Version, cluster.KubernetesVersion, dir, cluster.Kubeconfig(dir), cluster.Socket(dir))
			return nil
		}}
}
