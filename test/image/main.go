// Command image packs programs, or a whole folder, into a docker archive, without a daemon:
//
//	image -o hello.tar -t proa.example/hello:v1 -e VERSION=v1 -c /hello hello=/hello
//	image -o agnhost.tar -t registry.example/agnhost:2 -r rootfs -p /agnhost -c pause
package main

import (
	"archive/tar"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run() error {
	out := flag.String("o", "", "archive to write")
	root, user := flag.String("r", "", "folder to take all files of"), flag.String("u", "", "user that the image runs as")
	var env, cmd, entrypoint, links, tags list
	flag.Var(&tags, "t", "name of the image")
	flag.Var(&env, "e", "variable NAME=VALUE")
	flag.Var(&cmd, "c", "word of the command")
	flag.Var(&entrypoint, "p", "word of the entrypoint")
	flag.Var(&links, "l", "link PATH=TARGET")
	flag.Parse()
	layer, err := os.CreateTemp("", "layer-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	w := tar.NewWriter(layer)
	if *root != "" {
		err = folder(w, *root)
	} else {
		err = skeleton(w)
	}
	if err != nil {
		return err
	}
	if err := files(w, flag.Args(), links); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	l, err := tarball.LayerFromFile(layer.Name())
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	path := "PATH=/bin"
	if *root != "" {
		path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	cfg.Config.Env, cfg.Config.Cmd = append([]string{path}, env...), cmd
	cfg.Config.Entrypoint, cfg.Config.User = entrypoint, *user
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	images := map[name.Reference]v1.Image{}
	for _, t := range tags {
		ref, err := name.NewTag(t)
		if err != nil {
			return err
		}
		images[ref] = img
	}
	return tarball.MultiRefWriteToFile(*out, images)
}

// skeleton writes what a static program expects to find.
func skeleton(w *tar.Writer) error {
	for _, d := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"} {
		mode := int64(0o755)
		if d == "tmp/" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: mode}); err != nil {
			return err
		}
	}
	passwd := "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	if err := w.WriteHeader(&tar.Header{Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))}); err != nil {
		return err
	}
	_, err := io.WriteString(w, passwd)
	return err
}

// folder writes all files of a folder, owners and set-user-ID bits kept.
func folder(w *tar.Writer, root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		h.Name, h.Uname, h.Gname = rel, "", ""
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			h.Uid, h.Gid = int(st.Uid), int(st.Gid)
		}
		if info.IsDir() {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("pack %s: %w", path, err)
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}

func files(w *tar.Writer, pairs, links []string) error {
	for _, a := range pairs {
		from, to, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("%q: want FILE=PATH", a)
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(to, "/"), Mode: 0o755, Size: int64(len(b))}); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	for _, l := range links {
		path, target, ok := strings.Cut(l, "=")
		if !ok {
			return fmt.Errorf("%q: want PATH=TARGET", l)
		}
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(path, "/"), Typeflag: tar.TypeSymlink, Linkname: target}); err != nil {
			return err
		}
	}
	return nil
}
