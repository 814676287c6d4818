package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/remote"
	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/join"
	"github.com/proa-dev/proa/internal/cluster/preflight"
)

// AgentConfig says which cluster this machine joins, and as what.
type AgentConfig struct {
	DataDir string
	Server  string // https://host:port
	// Token and CAHash are needed the first time.
	Token, CAHash string
	NodeName      string // "": the host's name
	NodeIP        string // "": the one by which the server is reached
	Registries    string
	Version       string
	Logger        *slog.Logger
	Progress      func(step string)
}

// serverFile keeps which server the machine has joined.
func serverFile(data string) string { return filepath.Join(data, "server") }

// RunAgent runs a node of a cluster that is served elsewhere until ctx ends; ready is
// called when the node is Ready. Containers run on when it returns.
func RunAgent(ctx context.Context, cfg AgentConfig, ready func()) error {
	machine := preflight.Host(ctx)
	if err := machine.Check(); err != nil {
		return err
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if err := cfg.complete(); err != nil {
		return err
	}
	release, err := instance.Acquire(cfg.DataDir, instance.Info{Version: cfg.Version, Server: cfg.Server, Started: time.Now()})
	if err != nil {
		return err
	}
	defer release()
	if err := machine.Ports(preflight.Port{Part: "kubelet", Address: ":" + kubeletPort}); err != nil {
		return err
	}
	a := &agent{AgentConfig: cfg, log: cfg.Logger, fail: make(chan error, 1)}
	return a.run(ctx, ready)
}

// complete fills in what was left out.
func (cfg *AgentConfig) complete() error {
	if cfg.Server == "" {
		b, err := os.ReadFile(serverFile(cfg.DataDir))
		if err != nil {
			return errors.New("this machine has not joined a cluster: --server, --token and --ca-hash are needed (the server's `proa token create` prints them)")
		}
		cfg.Server = strings.TrimSpace(string(b))
	}
	if cfg.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host's name: %w", err)
		}
		cfg.NodeName = strings.ToLower(name)
	}
	if cfg.NodeIP == "" {
		address, ok := strings.CutPrefix(cfg.Server, "https://")
		if !ok {
			return fmt.Errorf("the server's address %q: https://host:port is wanted", cfg.Server)
		}
		// Nothing is sent: the kernel says which address it would use.
		c, err := net.Dial("udp", strings.TrimSuffix(address, "/"))
		if err != nil {
			return fmt.Errorf("find this machine's address: %w (choose it with --node-ip)", err)
		}
		cfg.NodeIP = c.LocalAddr().(*net.UDPAddr).IP.String()
		_ = c.Close()
	}
	return nil
}

type agent struct {
	AgentConfig
	log  *slog.Logger
	wg   sync.WaitGroup
	fail chan error
}

func (a *agent) part(ctx context.Context, name string, run func(context.Context) error) {
	a.wg.Go(func() {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			select {
			case a.fail <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	})
}

func (a *agent) run(ctx context.Context, ready func()) error {
	ip, err := netip.ParseAddr(a.NodeIP)
	if err != nil {
		return fmt.Errorf("the node's address: %w", err)
	}
	a.Progress("joining the cluster at " + a.Server)
	id, err := join.Open(ctx, join.Config{Dir: pkiDir(a.DataDir), Server: a.Server, Token: a.Token, Pin: a.CAHash, Node: a.NodeName,
		IPs: []net.IP{ip.AsSlice()}, Logger: a.log})
	if err != nil {
		return err
	}
	if err := os.WriteFile(serverFile(a.DataDir), []byte(a.Server+"\n"), 0o644); err != nil {
		return fmt.Errorf("write down the server: %w", err)
	}
	c, err := remote.New(id.Client())
	if err != nil {
		return err
	}
	defer c.Close()
	pods, err := a.register(ctx, c, ip)
	if err != nil {
		return err
	}
	if err := id.Serve(ctx, c); err != nil {
		return fmt.Errorf("get the node's serving certificate: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer cancel()
	a.part(ctx, "certificates", func(ctx context.Context) error { return id.Run(ctx, c) })
	a.Progress("starting the node")
	m := &member{data: a.DataDir, name: a.NodeName, registries: a.Registries, version: a.Version, ip: ip, pods: pods,
		self: c, proxy: c, names: c, tls: id.TLS(), part: a.part, log: a.log}
	synced, stop, err := m.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	defer a.wg.Wait()
	defer cancel()
	a.part(ctx, "ready", func(ctx context.Context) error {
		select {
		case <-synced:
		case <-ctx.Done():
			return nil
		}
		if waitReady(ctx, c, a.NodeName) && ready != nil {
			ready()
		}
		return nil
	})
	select {
	case <-ctx.Done():
		return nil
	case err := <-a.fail:
		return err
	}
}

// register makes the Node, unless there is one, and waits for its range of pod
// addresses: the network needs it before anything runs. The kubelet fills in the rest.
func (a *agent) register(ctx context.Context, c client.Interface, ip netip.Addr) (netip.Prefix, error) {
	if _, err := client.Nodes.Get(ctx, c, "", a.NodeName); apierrors.IsNotFound(err) {
		if _, err := client.Nodes.Create(ctx, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.NodeName,
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip.String()}, {Type: corev1.NodeHostName, Address: a.NodeName}}}}); err != nil && !apierrors.IsAlreadyExists(err) {
			return netip.Prefix{}, fmt.Errorf("register node %s: %w", a.NodeName, err)
		}
	} else if err != nil {
		return netip.Prefix{}, fmt.Errorf("look for node %s: %w", a.NodeName, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var pods netip.Prefix
	err := client.Nodes.Informer(c, client.Scope{Name: a.NodeName}).Watch(ctx, func(e client.Event) {
		n, ok := e.Object.(*corev1.Node)
		if !ok || pods.IsValid() || e.Type == client.Deleted {
			return
		}
		if p, err := netip.ParsePrefix(n.Spec.PodCIDR); err == nil {
			pods = p
			cancel()
		}
	})
	if !pods.IsValid() {
		return pods, fmt.Errorf("wait for the range of pod addresses of node %s: %w", a.NodeName, errors.Join(err, ctx.Err()))
	}
	return pods, nil
}
