package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/proa-dev/proa/internal/cluster"
	"github.com/proa-dev/proa/internal/cluster/kubectl"
)

func kubectlCommand(data *string) *cobra.Command {
	return &cobra.Command{Use: "kubectl ARGUMENT...", Short: "Run the kubectl that comes with proa, on this cluster unless KUBECONFIG says otherwise",
		Long: "Run the kubectl that comes with proa, on this cluster unless KUBECONFIG says otherwise.\n" +
			"A link named kubectl to this program behaves as kubectl does.",
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return runKubectl(*data, args, false) }}
}

func runKubectl(data string, args []string, asKubectl bool) error {
	home, _ := os.UserHomeDir() // without one there is no file of the user's
	return kubectl.Exec(args, kubectl.Caller{Env: os.Environ(), Home: home, Admin: cluster.Kubeconfig(data), AsKubectl: asKubectl})
}
