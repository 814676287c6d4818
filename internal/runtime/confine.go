package runtime

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/runtime/seccomp"
)

// filters keeps compiled seccomp filters as files named by their content. A
// container goes on with its own when the profile it was made from changes.
type filters struct {
	dir string

	mu       sync.Mutex
	defaults map[uint64]compiled // by capability set
}

type compiled struct {
	path  string
	flags uint32
}

// maxDefaults bounds the capability sets that are remembered.
const maxDefaults = 256

// standard is the default profile for a capability set.
func (f *filters) standard(caps uint64) (compiled, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.defaults[caps]; ok {
		return c, nil
	}
	filter, err := seccomp.Default(runtime.GOARCH, capList(caps))
	if err != nil {
		return compiled{}, err
	}
	c, err := f.keep(filter)
	if err != nil {
		return compiled{}, err
	}
	if f.defaults == nil || len(f.defaults) >= maxDefaults {
		f.defaults = map[uint64]compiled{}
	}
	f.defaults[caps] = c
	return c, nil
}

// localhost is the filter of a profile on this node.
func (f *filters) localhost(path string, caps uint64) (compiled, error) {
	filter, err := seccomp.Load(path, runtime.GOARCH, capList(caps))
	if err != nil {
		return compiled{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keep(filter)
}

// keep writes a filter down, once.
func (f *filters) keep(filter *seccomp.Filter) (compiled, error) {
	b := filter.Bytes()
	c := compiled{filepath.Join(f.dir, fmt.Sprintf("%x", sha256.Sum256(b))), filter.Flags}
	if info, err := os.Stat(c.path); err == nil && info.Size() == int64(len(b)) {
		return c, nil
	}
	tmp := c.path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return c, fmt.Errorf("write the seccomp filter: %w", errors.Join(err, os.Remove(tmp)))
	}
	if err := os.Rename(tmp, c.path); err != nil {
		return c, fmt.Errorf("write the seccomp filter: %w", err)
	}
	return c, nil
}

// sweep removes the filters that no container has.
func (f *filters) sweep(used map[string]bool) error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return fmt.Errorf("clear the seccomp filters: %w", err)
	}
	for _, e := range entries {
		if path := filepath.Join(f.dir, e.Name()); !used[path] {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("clear the seccomp filters: %w", err)
			}
		}
	}
	return nil
}

func capList(set uint64) (out []string) {
	for i, name := range capNames {
		if set>>i&1 == 1 {
			out = append(out, "CAP_"+name)
		}
	}
	return out
}

// confine chooses a container's seccomp filter. Nothing asked for is unconfined;
// what the kubelet's default is, it asks for itself.
func (s *Server) confine(e *execSpec, sc *runtimeapi.LinuxContainerSecurityContext) error {
	if sc.Privileged || sc.Seccomp == nil {
		return nil
	}
	var c compiled
	var err error
	switch sc.Seccomp.ProfileType {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		c, err = s.filters.standard(e.Caps)
	case runtimeapi.SecurityProfile_Localhost:
		if !filepath.IsAbs(sc.Seccomp.LocalhostRef) {
			return fmt.Errorf("seccomp profile %s: an absolute path is wanted", strconv.Quote(sc.Seccomp.LocalhostRef))
		}
		c, err = s.filters.localhost(sc.Seccomp.LocalhostRef, e.Caps)
	default:
		return fmt.Errorf("unknown seccomp profile type %d", sc.Seccomp.ProfileType)
	}
	e.Seccomp, e.SeccompFlags = c.path, c.flags
	return err
}

// label chooses a container's AppArmor profile, and refuses what it cannot give. The
// runtime loads no profile itself: one of the node is applied, the default is none.
func (e *execSpec) label(sc *runtimeapi.LinuxContainerSecurityContext) error {
	if sc.SelinuxOptions != nil {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
			return errors.New("SELinux options are not supported by this runtime")
		}
	}
	profile := sc.GetApparmor()
	if sc.Privileged || profile.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return nil
	}
	name := strings.TrimPrefix(profile.LocalhostRef, "localhost/")
	if name == "" || strings.ContainsAny(name, "\n\x00") {
		return fmt.Errorf("AppArmor profile %q: a name is wanted", name)
	}
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || !strings.HasPrefix(string(b), "Y") {
		return fmt.Errorf("AppArmor profile %q: AppArmor is not enabled on the host", name)
	}
	loaded, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return fmt.Errorf("AppArmor profile %q: %w", name, err)
	}
	for line := range strings.Lines(string(loaded)) {
		if strings.HasPrefix(line, name+" (") {
			e.AppArmor = name
			return nil
		}
	}
	return fmt.Errorf("AppArmor profile %q is not loaded", name)
}
