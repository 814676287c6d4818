// Command proa is Kubernetes in one program.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/cluster"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if filepath.Base(os.Args[0]) == "kubectl" { // a link of that name
		exit(runKubectl(defaultData, os.Args[1:], true))
	}
	exit(command().ExecuteContext(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

const defaultData = "/var/lib/proa"

func command() *cobra.Command {
	root := &cobra.Command{Use: "proa", Short: "Kubernetes in one program", SilenceUsage: true, SilenceErrors: true,
		TraverseChildren: true} // --data-dir before kubectl is proa's, what comes after is kubectl's
	data := root.PersistentFlags().String("data-dir", defaultData, "folder that holds everything proa keeps")
	root.AddCommand(up(data), down(data), reset(data), status(data), image(data), kubectlCommand(data), &cobra.Command{
		Use: "version", Short: "Print the versions of proa and of the Kubernetes API", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "proa %s, Kubernetes %s\n", version, cluster.KubernetesVersion)
		}})
	return root
}

func logger(cmd *cobra.Command, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: l})), nil
}

func pidFile(data string) string { return filepath.Join(data, "proa.pid") }

func up(data *string) *cobra.Command {
	var listen, node, ip, level string
	cmd := &cobra.Command{Use: "up", Short: "Run a cluster on this machine until Ctrl-C; its containers run on", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(cmd, level)
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(*data)
			if err != nil {
				return err
			}
			start := time.Now()
			say := func(step string) { fmt.Fprintf(cmd.OutOrStdout(), "%6.2fs  %s\n", time.Since(start).Seconds(), step) }
			defer os.Remove(pidFile(dir))
			return cluster.Run(cmd.Context(), cluster.Config{DataDir: dir, Listen: listen, NodeName: node, NodeIP: ip, Version: version, Logger: log, Progress: say}, func() {
				_ = os.WriteFile(pidFile(dir), []byte(fmt.Sprint(os.Getpid())), 0o600)
				say("the node is ready; use it with: export KUBECONFIG=" + cluster.Kubeconfig(dir))
			})
		}}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:6443", "address of the API server (use 0.0.0.0:6443 to let other machines and pods in)")
	f.StringVar(&node, "node-name", "", "name of the node (default: the host's)")
	f.StringVar(&ip, "node-ip", "", "address of the node (default: that of the first interface)")
	f.StringVar(&level, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

// running returns the process that runs on a data folder.
func running(data string) (int, bool) {
	b, err := os.ReadFile(pidFile(data))
	if err != nil {
		return 0, false
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil || unix.Kill(pid, 0) != nil {
		return 0, false
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return pid, err == nil && strings.HasPrefix(filepath.Base(exe), "proa")
}

func down(data *string) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Stop the cluster; its containers and data stay", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pid, ok := running(*data)
			if !ok {
				fmt.Fprintln(cmd.OutOrStdout(), "no cluster runs on", *data)
				return nil
			}
			if err := unix.Kill(pid, unix.SIGTERM); err != nil {
				return fmt.Errorf("stop process %d: %w", pid, err)
			}
			for range 300 {
				if _, ok := running(*data); !ok {
					fmt.Fprintln(cmd.OutOrStdout(), "stopped; the containers run on, `proa reset` removes them")
					return nil
				}
				time.Sleep(100 * time.Millisecond)
			}
			return fmt.Errorf("process %d does not end", pid)
		}}
}

func reset(data *string) *cobra.Command {
	return &cobra.Command{Use: "reset", Short: "Stop and remove the cluster with all its containers and data", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(*data)
			if err != nil {
				return err
			}
			if _, ok := running(dir); ok {
				if err := down(&dir).RunE(cmd, args); err != nil {
					return err
				}
			}
			return cluster.Reset(dir)
		}}
}

func status(data *string) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Say whether a cluster runs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pid, ok := running(*data)
			if !ok {
				return errors.New("no cluster runs on " + *data)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "running as process %d on %s\nkubeconfig: %s\nCRI socket: %s\n", pid, *data, cluster.Kubeconfig(*data), cluster.Socket(*data))
			return nil
		}}
}

func image(data *string) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Manage the images on this machine"}
	var names []string
	add := &cobra.Command{Use: "import FILE...", Short: "Import docker archives or OCI layouts", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := cluster.Images(*data, slog.Default())
			if err != nil {
				return err
			}
			for _, from := range args {
				list, err := store.Import(cmd.Context(), from, names)
				for _, img := range list {
					fmt.Fprintln(cmd.OutOrStdout(), strings.Join(img.RepoTags, ", "), img.ID)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}}
	add.Flags().StringSliceVar(&names, "name", nil, "name for the image, in place of those in the archive")
	cmd.AddCommand(add, &cobra.Command{Use: "list", Short: "List the images", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := cluster.Images(*data, slog.Default())
			if err != nil {
				return err
			}
			list, err := store.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 3, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tID\tSIZE")
			for _, img := range list {
				fmt.Fprintf(w, "%s\t%s\t%.1f MB\n", strings.Join(img.RepoTags, ", "), strings.TrimPrefix(img.ID, "sha256:")[:12], float64(img.Size)/1e6)
			}
			return w.Flush()
		}}, &cobra.Command{Use: "rm NAME...", Short: "Remove images", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := cluster.Images(*data, slog.Default())
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := store.Remove(name); err != nil {
					return err
				}
			}
			return nil
		}})
	return cmd
}
