// Command proa is Kubernetes in one program.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/proa-dev/proa/internal/cluster"
)

// version is set by the linker.
var version = "dev"

const defaultData = cluster.DefaultDataDir

func main() {
	if filepath.Base(os.Args[0]) == "kubectl" { // a link of that name
		exit(runKubectl(defaultData, os.Args[1:], true))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	exit(command().ExecuteContext(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "proa", Short: "Kubernetes in one program", SilenceUsage: true, SilenceErrors: true,
		TraverseChildren: true} // --data-dir before kubectl is proa's, what comes after is kubectl's
	data := root.PersistentFlags().String("data-dir", defaultData, "folder that holds everything proa keeps")
	registries := root.PersistentFlags().String("registries", "/etc/proa/certs.d", "folder of REGISTRY/hosts.toml files: mirrors and certificates of registries, as containerd reads them")
	root.AddCommand(upCommand(data, registries), agentCommand(data, registries), tokenCommand(data), downCommand(data), resetCommand(data), statusCommand(data), imageCommand(data, registries), runtimeCommand(data, registries), kubectlCommand(data), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print the versions of proa and of the Kubernetes API", Args: cobra.NoArgs}
	output := cmd.Flags().StringP("output", "o", "", "json, or empty for text")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch *output {
		case "":
			fmt.Fprintf(cmd.OutOrStdout(), "proa %s, Kubernetes %s\n", version, cluster.KubernetesVersion)
			return nil
		case "json":
			return writeJSON(cmd, struct {
				Proa       string `json:"proa"`
				Kubernetes string `json:"kubernetes"`
				Go         string `json:"go"`
				Platform   string `json:"platform"`
			}{version, cluster.KubernetesVersion, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH})
		}
		return fmt.Errorf("--output %q: use json, or leave it out", *output)
	}
	return cmd
}

func writeJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func logger(cmd *cobra.Command, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: l})), nil
}
