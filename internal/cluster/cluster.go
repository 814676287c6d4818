// Package cluster says which parts of Kubernetes run in this process, in which
// order and with which certificates, and takes them down again.
package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/util/workqueue"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/apiserver/admission"
	"github.com/proa-dev/proa/internal/apiserver/admission/callout"
	"github.com/proa-dev/proa/internal/apiserver/aggregator"
	"github.com/proa-dev/proa/internal/apiserver/authn"
	"github.com/proa-dev/proa/internal/apiserver/customresource"
	"github.com/proa-dev/proa/internal/apiserver/proxy"
	"github.com/proa-dev/proa/internal/apiserver/rbac"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/kubeconfig"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/cluster/machines"
	"github.com/proa-dev/proa/internal/cluster/observe"
	"github.com/proa-dev/proa/internal/cluster/pki"
	"github.com/proa-dev/proa/internal/cluster/preflight"
	"github.com/proa-dev/proa/internal/runtime/images"
	"github.com/proa-dev/proa/internal/store/etcd"
)

// KubernetesVersion is the version of the API that is served.
const KubernetesVersion = "v1.37.2"

// Config says what to run and where.
type Config struct {
	DataDir  string // everything that is kept
	Listen   string // of the API server, host:port
	NodeName string // "": the host's name
	NodeIP   string // "": that of the default route, or the first one
	// Nodes is how many nodes run on this machine; 0: as many as before, or one.
	Nodes int
	// Registries is the folder of the registries' hosts.toml files: mirrors, certificates.
	Registries string
	Version    string
	Logger     *slog.Logger
	// Kubeconfig is the user's file that the cluster is written into, beside its own
	// one in the data folder; "": none. Owner is whose file it is.
	Kubeconfig string
	Owner      kubeconfig.User
	// Progress is told each step (nil: nobody).
	Progress func(step string)
}

// Ranges of a cluster. podRange is what the serving node has of clusterRange.
var (
	clusterRange = netip.MustParsePrefix("10.244.0.0/16")
	podRange     = netip.MustParsePrefix("10.244.0.0/24")
	serviceRange = netip.MustParsePrefix("10.96.0.0/16")
	apiServiceIP = "10.96.0.1"
	dnsServiceIP = "10.96.0.10"
)

const (
	clusterDomain = "cluster.local"
	nodePortLow   = 30000
	nodePortHigh  = 32767
	etcdClient    = "127.0.0.1:2379"
	kubeletPort   = "10250"
	dnsPort       = 53
)

// gateway is the address of this machine in the pod network.
func gateway() netip.Addr { return gatewayOf(podRange) }

func gatewayOf(pods netip.Prefix) netip.Addr { return pods.Masked().Addr().Next() }

// Paths of the parts in a data folder.
func storeDir(data string) string   { return filepath.Join(data, "store") }
func pkiDir(data string) string     { return filepath.Join(data, "pki") }
func imageDir(data string) string   { return filepath.Join(data, "images") }
func runtimeDir(data string) string { return filepath.Join(data, "runtime") }
func networkDir(data string) string { return filepath.Join(data, "network") }
func kubeletDir(data string) string { return filepath.Join(data, "kubelet") }

// Kubeconfig is the path of the administrator's kubeconfig.
func Kubeconfig(data string) string { return filepath.Join(data, "admin.kubeconfig") }

// Socket is the path of the CRI socket.
func Socket(data string) string { return filepath.Join(data, "cri.sock") }

// Images opens the image store of a data folder, also while a cluster runs on it.
// registries is the folder of the registries' hosts.toml files.
func Images(data, registries string, log *slog.Logger) (*images.Store, error) {
	store, err := images.Open(imageDir(data), log)
	if err == nil {
		store.Registries = registries
	}
	return store, err
}

// Run runs a cluster of one node until ctx ends; ready is called when the node is
// Ready. Containers run on when it returns.
func Run(ctx context.Context, cfg Config, ready func()) error {
	machine := preflight.Host(ctx)
	if err := machine.Check(); err != nil {
		return err
	}
	if cfg.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host's name: %w", err)
		}
		cfg.NodeName = strings.ToLower(name)
	}
	if had := 1 + len(machines.Folders(cfg.DataDir)); cfg.Nodes < had {
		cfg.Nodes = had
	}
	if cfg.NodeIP == "" && cfg.Nodes > 1 {
		cfg.NodeIP = machines.Address(1).String()
	}
	if cfg.NodeIP == "" {
		ip, err := hostIP()
		if err != nil {
			return err
		}
		cfg.NodeIP = ip
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	release, err := instance.Acquire(cfg.DataDir, instance.Info{Version: cfg.Version, Server: serverURL(cfg.Listen), Started: time.Now()})
	if err != nil {
		return err
	}
	defer release()
	// A port in use is known before anything is changed.
	if err := machine.Ports(preflight.Port{Part: "API server", Address: cfg.Listen, Remedy: "stop it, or choose another port with --listen"},
		preflight.Port{Part: "store", Address: etcdClient}, preflight.Port{Part: "kubelet", Address: ":" + kubeletPort}); err != nil {
		return err
	}
	if cfg.Nodes > 1 {
		if err := machines.Segment(); err != nil {
			return err
		}
	}
	c := &cluster{Config: cfg, log: cfg.Logger}
	return c.run(ctx, ready)
}

type cluster struct {
	Config
	log *slog.Logger

	ca, etcdCA, frontProxyCA  *pki.Pair
	serving, kubelet, admin   *pki.Pair
	etcdServer, kubeletCaller *pki.Pair
	frontProxy                *pki.Pair
	tokens                    *authn.Tokens

	local *local.Client
	// inside is the address at which pods reach the API server.
	inside string
	wg     sync.WaitGroup
	fail   chan error
}

// part runs a component until ctx ends; its failure ends the cluster.
func (c *cluster) part(ctx context.Context, name string, run func(context.Context) error) {
	c.wg.Go(func() {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			select {
			case c.fail <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	})
}

func (c *cluster) run(ctx context.Context, ready func()) (err error) {
	c.fail = make(chan error, 1)
	listener, inside, err := listen(c.Listen, c.NodeIP, gateway(), c.Nodes > 1)
	if err != nil {
		return err
	}
	c.inside = inside
	defer listener.Close()
	if err := c.certificates(); err != nil {
		return err
	}
	c.Progress("starting the store")
	st, err := etcd.New(ctx, etcd.Options{Dir: storeDir(c.DataDir), Logger: c.log, ClientAddr: etcdClient,
		TLS: &tls.Config{Certificates: []tls.Certificate{c.etcdServer.TLS()}, ClientCAs: c.etcdCA.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}})
	if errors.Is(err, etcd.ErrLocked) {
		return fmt.Errorf("another program uses the store in %s: stop it", storeDir(c.DataDir))
	}
	if err != nil {
		return err
	}
	defer st.Close()

	c.Progress("starting the API server")
	metrics, bootstrapped := observe.Registry(KubernetesVersion), &observe.Started{}
	workqueue.SetProvider(observe.Queues(metrics)) // client-go's own global; the first cluster of a process has it
	measured := observe.Store(st, metrics)
	var registry *rest.Registry
	state := local.State{Registry: func() *rest.Registry { return registry }}
	list, scheme := resources.All(), resources.Scheme()
	authorizer := rbac.New(state)
	chain := admission.New(admission.Config{Reader: state, Authorizer: authorizer, Metrics: metrics, Logger: c.log, Addresses: admission.NewAddresses(state, serviceRange, nodePortLow, nodePortHigh, time.Now),
		UpdateQuota: func(ctx context.Context, q *corev1.ResourceQuota) (*corev1.ResourceQuota, error) {
			return client.ResourceQuotas.UpdateStatus(ctx, c.local, q)
		}})
	var definitions *customresource.Definitions
	registry, err = rest.New(rest.Config{Store: measured, Resources: list, Scheme: scheme, Admission: chain, Logger: c.log,
		Types: func(res *api.Resource) managedfields.TypeConverter { return definitions.Types(res) }})
	if err != nil {
		return err
	}
	measured.Names(prefixes(registry, list))
	if err := registry.Start(ctx); err != nil {
		return err
	}
	defer registry.Close()
	if err := c.tokenIssuer(state); err != nil {
		return err
	}
	c.local = local.New(registry, list, c.tokens, &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}})

	// Everything that runs ends before what it stands on: parts first, then the
	// registry and the store by the defers above.
	ctx, cancel := context.WithCancel(ctx)
	defer c.wg.Wait()
	defer cancel()

	for _, gvr := range []client.Informer{c.local.Informer(rbac.RoleBindingsGVR, client.Scope{}), c.local.Informer(rbac.ClusterRoleBindingsGVR, client.Scope{})} {
		c.part(ctx, "rbac", func(ctx context.Context) error {
			return gvr.Watch(ctx, func(e client.Event) {
				switch e.Type {
				case client.Added, client.Modified:
					authorizer.Set(e.Object)
				case client.Deleted:
					authorizer.Remove(e.Object)
				}
			})
		})
	}
	nodes := proxy.NewNodes(func(ctx context.Context, name string) (*corev1.Node, error) {
		return client.Nodes.Get(ctx, c.local, "", name)
	}, &tls.Config{Certificates: []tls.Certificate{c.kubeletCaller.TLS()}, RootCAs: c.ca.Pool(), MinVersion: tls.VersionTLS12}, nil)
	defer nodes.Close()
	paths, err := issuerPaths(c.tokens)
	if err != nil {
		return err
	}
	var others *aggregator.Aggregator // made from the server's catalog
	server, err := apiserver.New(apiserver.Config{
		Delegate: func(group, version string) http.Handler { return others.Delegate(group, version) },
		Metrics:  metrics, Checks: observe.Checks(st, bootstrapped), Paths: paths,
		Registry: registry, Resources: list, Scheme: scheme, Admission: chain, Logger: c.log,
		Authenticator: authn.New(c.ca.Pool(), c.tokens, open).WithBootstrap(authn.NewBootstrap(state, time.Now)), Authorizer: authorizer,
		TokenIssuer: c.tokens, TokenReviewer: c.tokens, Nodes: nodes,
		TLS:     &tls.Config{Certificates: []tls.Certificate{c.serving.TLS()}, ClientCAs: c.ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12},
		Version: version.Info{Major: "1", Minor: "37", GitVersion: KubernetesVersion + "+proa", GitTreeState: "clean", Platform: "linux/amd64", Compiler: "gc"},
		Address: net.JoinHostPort(c.inside, port(c.Listen)),
	})
	if err != nil {
		return err
	}
	frontProxy := c.frontProxy.TLS()
	if others, err = aggregator.New(aggregator.Config{Registry: registry, Catalog: server.Catalog(), Reader: state, Resolver: callout.Services{Reader: state},
		Certificate: &frontProxy, Metrics: metrics, Logger: c.log}); err != nil {
		return err
	}
	conversions := callout.New(callout.Services{Reader: state})
	defer conversions.Close()
	if definitions, err = customresource.New(customresource.Config{Registry: registry, Catalog: server.Catalog(),
		Webhooks: customresource.Callout{Client: conversions}, Logger: c.log}); err != nil {
		return err
	}
	if err := definitions.Load(ctx); err != nil {
		return err
	}
	c.part(ctx, "custom resources", definitions.Run)
	c.part(ctx, "API server", func(ctx context.Context) error { return server.Serve(ctx, listener) })
	if err := c.bootstrap(ctx); err != nil {
		return err
	}
	if err := c.publish(ctx); err != nil {
		return err
	}
	bootstrapped.Done()
	if err := c.writeKubeconfigs(); err != nil {
		return err
	}
	if err := c.controllers(ctx, server.SchemaOf); err != nil {
		return err
	}
	c.Progress("starting the node")
	synced, stop, err := c.node(ctx)
	if err != nil {
		return err
	}
	defer stop()
	defer c.wg.Wait()
	defer cancel()
	c.part(ctx, "ready", func(ctx context.Context) error {
		select {
		case <-synced:
		case <-ctx.Done():
			return nil
		}
		if !waitReady(ctx, c.local, c.NodeName) {
			return nil
		}
		c.part(ctx, "aggregation", others.Run) // its objects can wait for the node
		if c.Nodes > 1 {
			defer c.wg.Go(func() { // nobody else stops them
				<-ctx.Done()
				if err := stopNodes(c.DataDir); err != nil {
					c.log.Warn("stop the other nodes", "err", err)
				}
			})
			if err := c.startNodes(ctx); err != nil {
				return err
			}
		}
		if ready != nil {
			ready()
		}
		return nil
	})
	select {
	case <-ctx.Done():
		return nil
	case err := <-c.fail:
		return err
	}
}

func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return "6443"
	}
	return p
}

// certificates makes or reads what the parts show each other.
func (c *cluster) certificates() error {
	dir, err := pki.Open(pkiDir(c.DataDir), time.Now)
	if err != nil {
		return err
	}
	if c.ca, err = dir.Authority("ca"); err != nil {
		return err
	}
	if c.etcdCA, err = dir.Authority("etcd-ca"); err != nil {
		return err
	}
	if c.frontProxyCA, err = dir.Authority("front-proxy-ca"); err != nil {
		return err
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(c.NodeIP), net.ParseIP(apiServiceIP), gateway().AsSlice()}
	names := []string{"localhost", c.NodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterDomain}
	for _, l := range []struct {
		to   **pki.Pair
		ca   *pki.Pair
		leaf pki.Leaf
	}{
		{&c.serving, c.ca, pki.Leaf{Name: "apiserver", CommonName: "kube-apiserver", DNS: names, IPs: ips, Server: true}},
		{&c.kubelet, c.ca, pki.Leaf{Name: "kubelet", CommonName: "system:node:" + c.NodeName, Organization: []string{"system:nodes"}, DNS: []string{c.NodeName, "localhost"}, IPs: ips[:2], Server: true, Client: true}},
		{&c.kubeletCaller, c.ca, pki.Leaf{Name: "apiserver-kubelet-client", CommonName: "kube-apiserver", Organization: []string{"system:masters"}, Client: true}},
		{&c.frontProxy, c.frontProxyCA, pki.Leaf{Name: "front-proxy-client", CommonName: "front-proxy-client", Client: true}},
		{&c.admin, c.ca, pki.Leaf{Name: "admin", CommonName: "kubernetes-admin", Organization: []string{"system:masters"}, Client: true}},
		{&c.etcdServer, c.etcdCA, pki.Leaf{Name: "etcd-server", CommonName: "etcd", DNS: []string{"localhost"}, IPs: ips[:1], Server: true, Client: true}},
	} {
		if *l.to, err = dir.Leaf(l.ca, l.leaf); err != nil {
			return err
		}
	}
	_, err = dir.Leaf(c.etcdCA, pki.Leaf{Name: "etcd-client", CommonName: "root", Client: true})
	return err
}

func (c *cluster) tokenIssuer(state authn.Reader) error {
	dir, err := pki.Open(pkiDir(c.DataDir), time.Now)
	if err != nil {
		return err
	}
	key, err := dir.SigningKey("sa")
	if err != nil {
		return err
	}
	const issuer = "https://kubernetes.default.svc." + clusterDomain
	c.tokens, err = authn.NewTokens(issuer, []string{issuer}, key, state, time.Now)
	return err
}
