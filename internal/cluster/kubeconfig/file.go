package kubeconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// User is whose kubeconfig is meant.
type User struct {
	Home     string
	UID, GID int
}

// Invoker is who called the program: behind sudo, the user who typed it.
func Invoker() User {
	u := User{Home: os.Getenv("HOME"), UID: os.Geteuid(), GID: os.Getegid()}
	if u.UID != 0 {
		return u
	}
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil || uid == 0 {
		return u
	}
	known, err := osuser.LookupId(strconv.Itoa(uid))
	if err != nil {
		return u
	}
	gid, err := strconv.Atoi(known.Gid)
	if err != nil {
		return u
	}
	return User{Home: known.HomeDir, UID: uid, GID: gid}
}

// Path is the file that kubectl would write to: of those that the variable
// KUBECONFIG lists the one that has proa's context, else the first that exists,
// else the last; without the variable, ~/.kube/config. "": there is no home.
func Path(variable string, u User) string {
	list := filepath.SplitList(variable)
	first, last := "", ""
	for _, path := range list {
		if path == "" {
			continue
		}
		last = path
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if hasContext(b) {
			return path
		}
		if first == "" {
			first = path
		}
	}
	switch {
	case first != "":
		return first
	case last != "":
		return last
	case u.Home == "":
		return ""
	}
	return filepath.Join(u.Home, ".kube", "config")
}

// HasContext says whether the file at path has a context of proa's.
func HasContext(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && hasContext(b)
}

// Merge writes e into the file at path, which is made for u when it is missing.
// It reports whether e is the file's current context.
func Merge(path string, e Entry, u User) (current bool, err error) {
	err = edit(path, u, func(old []byte) (out []byte, err error) {
		out, current, err = add(old, e)
		return out, err
	})
	return current, err
}

// Remove takes the cluster of the authority ca out of the file at path. That
// neither file nor cluster is there is no error.
func Remove(path string, ca []byte, u User) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return edit(path, u, func(old []byte) ([]byte, error) {
		out, changed, err := remove(old, ca)
		if !changed {
			return nil, err
		}
		return out, err
	})
}

// Write puts a file in place as a whole, readable by its owner only.
func Write(path string, b []byte, uid, gid int) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".kubeconfig-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if uid != os.Geteuid() || gid != os.Getegid() {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// edit changes a file under the lock that kubectl honours. change returns nil to
// leave it.
func edit(path string, u User, change func([]byte) ([]byte, error)) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("change the kubeconfig %s: %w", path, err)
		}
	}()
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a link stays a link
	}
	if err := folder(filepath.Dir(path), u); err != nil {
		return err
	}
	unlock, err := lock(path)
	if err != nil {
		return err
	}
	defer unlock()
	uid, gid := u.UID, u.GID
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		uid, gid = int(st.Uid), int(st.Gid)
		// Behind sudo, a link in the user's home must not lead to another's file.
		if os.Geteuid() == 0 && u.UID != 0 && uid != u.UID {
			return fmt.Errorf("it belongs to user %d, not to %d: choose a file with --kubeconfig, or none with --no-kubeconfig", uid, u.UID)
		}
	}
	out, err := change(old)
	if err != nil || out == nil {
		return err
	}
	return Write(path, out, uid, gid)
}

// folder makes the folder of a kubeconfig.
func folder(dir string, u User) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := folder(filepath.Dir(dir), u); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if u.UID == os.Geteuid() {
		return nil
	}
	return os.Lchown(dir, u.UID, u.GID)
}

// lock takes the lock of client-go: a file beside the kubeconfig.
func lock(path string) (unlock func(), err error) {
	name := path + ".lock"
	for range 40 {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0)
		if err == nil {
			_ = f.Close()
			return func() { _ = os.Remove(name) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s is there: another program changes the file, or one that was killed left it; remove it in that case", name)
}
