// Command kubectl is kubectl as it is. It is a program of its own, packed into
// proa (internal/cluster/kubectl): linked in, it would keep every exported method
// of proa too (docs/dependencies.md).
package main

import (
	"os"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // credentials of cloud providers and OIDC
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err) // prints it in kubectl's way, and exits
		os.Exit(1)
	}
}
