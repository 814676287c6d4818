// Command pack compresses kubectl for package kubectl and notes its digest:
//
//	go run ./internal/cluster/kubectl/pack KUBECTL FOLDER
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: pack KUBECTL FOLDER")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "pack kubectl:", err)
		os.Exit(1)
	}
}

func pack(program, folder string) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	digest := fmt.Sprintf("%x %d\n", sha256.Sum256(b), len(b))
	// The compressed file comes last: make looks at its time.
	if err := os.WriteFile(filepath.Join(folder, "kubectl.sha256"), []byte(digest), 0o644); err != nil {
		return err
	}
	path := filepath.Join(folder, "kubectl.zst")
	if err := os.WriteFile(path+".tmp", out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
