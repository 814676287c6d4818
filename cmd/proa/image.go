package main

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/proa-dev/proa/internal/cluster"
	"github.com/proa-dev/proa/internal/runtime/images"
)

func imageCommand(data, registries *string) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Manage the images on this machine"}
	open := func() (*images.Store, error) { return cluster.Images(*data, *registries, slog.Default()) }
	all := func() (out []*images.Store, err error) {
		for _, folder := range cluster.Folders(*data) {
			store, err := cluster.Images(folder, *registries, slog.Default())
			if err != nil {
				return nil, err
			}
			out = append(out, store)
		}
		return out, nil
	}
	cmd.AddCommand(importCommand(all), pullCommand(open),
		&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the images", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				store, err := open()
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
					fmt.Fprintf(w, "%s\t%s\t%.1f MB\n", called(img), strings.TrimPrefix(img.ID, "sha256:")[:12], float64(img.Size)/1e6)
				}
				return w.Flush()
			}},
		&cobra.Command{Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove images", Args: cobra.MinimumNArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				store, err := open()
				if err != nil {
					return err
				}
				for _, name := range args {
					if _, err := store.Resolve(name); err != nil {
						return fmt.Errorf("remove %s: %w", name, err)
					}
					if err := store.Remove(name); err != nil {
						return err
					}
				}
				return nil
			}})
	return cmd
}

// called is an image's tags, or its digests when it has none.
func called(img images.Image) string {
	if len(img.RepoTags) > 0 {
		return strings.Join(img.RepoTags, ", ")
	}
	return strings.Join(img.RepoDigests, ", ")
}

func importCommand(open func() ([]*images.Store, error)) *cobra.Command {
	var names []string
	cmd := &cobra.Command{Use: "import FILE...", Short: "Import docker archives or OCI layouts", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			stores, err := open()
			if err != nil {
				return err
			}
			for _, from := range args {
				for i, store := range stores { // each node of this machine has its own
					list, err := store.Import(cmd.Context(), from, names)
					for _, img := range list {
						if i == 0 {
							fmt.Fprintln(cmd.OutOrStdout(), called(img), img.ID)
						}
					}
					if err != nil {
						return err
					}
				}
			}
			return nil
		}}
	cmd.Flags().StringSliceVar(&names, "name", nil, "name for the image, in place of those in the archive")
	return cmd
}

func pullCommand(open func() (*images.Store, error)) *cobra.Command {
	var login string
	var stdin bool
	cmd := &cobra.Command{Use: "pull NAME...", Short: "Pull images from registries", Args: cobra.MinimumNArgs(1),
		Long: "Pull images from registries, with the logins of docker's config.json ($DOCKER_CONFIG or ~/.docker) unless --user is given.\n" +
			"Registries are spoken to over HTTPS, those on a loopback address over plain HTTP too. Their mirrors and\n" +
			"certificates are those of --registries.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var given images.Auth
			if login != "" {
				given.Username, given.Password, _ = strings.Cut(login, ":")
			}
			if stdin {
				if login == "" {
					return errors.New("--password-stdin needs --user")
				}
				line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
				if given.Password = strings.TrimRight(line, "\r\n"); given.Password == "" {
					return fmt.Errorf("read the password: %w", err)
				}
			}
			store, err := open()
			if err != nil {
				return err
			}
			for _, name := range args {
				auth := given
				if login == "" {
					if auth, err = images.Login(name); err != nil {
						return err
					}
				}
				img, err := store.Pull(cmd.Context(), name, auth, nil)
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), called(img), img.ID)
			}
			return nil
		}}
	cmd.Flags().StringVarP(&login, "user", "u", "", "name:password for the registry, or the name with --password-stdin")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input, where no list of processes shows it")
	return cmd
}
