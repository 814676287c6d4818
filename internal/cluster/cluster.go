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
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/apiserver/admission"
	"github.com/proa-dev/proa/internal/apiserver/authn"
	"github.com/proa-dev/proa/internal/apiserver/proxy"
	"github.com/proa-dev/proa/internal/apiserver/rbac"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/kubeconfig"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/cluster/observe"
	"github.com/proa-dev/proa/internal/cluster/pki"
	"github.com/proa-dev/proa/internal/cluster/preflight"
	"github.com/proa-dev/proa/internal/controllers/daemonset"
	"github.com/proa-dev/proa/internal/controllers/deployment"
	"github.com/proa-dev/proa/internal/controllers/disruption"
	"github.com/proa-dev/proa/internal/controllers/endpointslice"
	"github.com/proa-dev/proa/internal/controllers/garbagecollector"
	"github.com/proa-dev/proa/internal/controllers/job"
	"github.com/proa-dev/proa/internal/controllers/namespace"
	"github.com/proa-dev/proa/internal/controllers/nodelifecycle"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/internal/controllers/serviceaccount"
	"github.com/proa-dev/proa/internal/controllers/statefulset"
	"github.com/proa-dev/proa/internal/controllers/ttlafterfinished"
	"github.com/proa-dev/proa/internal/kubelet"
	"github.com/proa-dev/proa/internal/network/dns"
	"github.com/proa-dev/proa/internal/network/kubeproxy"
	"github.com/proa-dev/proa/internal/network/podnet"
	"github.com/proa-dev/proa/internal/runtime"
	"github.com/proa-dev/proa/internal/runtime/images"
	"github.com/proa-dev/proa/internal/scheduler"
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
	Version  string
	Logger   *slog.Logger
	// Kubeconfig is the user's file that the cluster is written into, beside its own
	// one in the data folder; "": none. Owner is whose file it is.
	Kubeconfig string
	Owner      kubeconfig.User
	// Progress is told each step (nil: nobody).
	Progress func(step string)
}

// Ranges of a cluster on one machine.
var (
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
func gateway() netip.Addr { return podRange.Masked().Addr().Next() }

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
func Images(data string, log *slog.Logger) (*images.Store, error) {
	return images.Open(imageDir(data), log)
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
	c := &cluster{Config: cfg, log: cfg.Logger}
	return c.run(ctx, ready)
}

type cluster struct {
	Config
	log *slog.Logger

	ca, etcdCA, frontProxyCA  *pki.Pair
	serving, kubelet, admin   *pki.Pair
	etcdServer, kubeletCaller *pki.Pair
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
	listener, inside, err := listen(c.Listen, c.NodeIP, gateway())
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
	chain := admission.Default(state, admission.NewAddresses(state, serviceRange, nodePortLow, nodePortHigh, time.Now))
	registry, err = rest.New(rest.Config{Store: measured, Resources: list, Scheme: scheme, Admission: chain, Logger: c.log})
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

	authorizer := rbac.New(state)
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
	server, err := apiserver.New(apiserver.Config{
		Metrics: metrics, Checks: observe.Checks(st, bootstrapped), Paths: paths,
		Registry: registry, Resources: list, Scheme: scheme, Admission: chain, Logger: c.log,
		Authenticator: authn.New(c.ca.Pool(), c.tokens, open), Authorizer: authorizer,
		TokenIssuer: c.tokens, TokenReviewer: c.tokens, Nodes: nodes,
		TLS:     &tls.Config{Certificates: []tls.Certificate{c.serving.TLS()}, ClientCAs: c.ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12},
		Version: version.Info{Major: "1", Minor: "37", GitVersion: KubernetesVersion + "+proa", GitTreeState: "clean", Platform: "linux/amd64", Compiler: "gc"},
		Address: net.JoinHostPort(c.inside, port(c.Listen)),
	})
	if err != nil {
		return err
	}
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
	c.controllers(ctx)
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
		if c.waitReady(ctx) && ready != nil {
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

// bootstrap makes the objects that every cluster has.
func (c *cluster) bootstrap(ctx context.Context) error {
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if err := ensure(ctx, c.local, client.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	for _, r := range rbac.Roles() {
		if err := ensure(ctx, c.local, client.ClusterRoles, r); err != nil {
			return err
		}
	}
	for _, b := range rbac.Bindings() {
		if err := ensure(ctx, c.local, client.ClusterRoleBindings, b); err != nil {
			return err
		}
	}
	for name, value := range map[string]int32{"system-cluster-critical": 2000000000, "system-node-critical": 2000001000} {
		if err := ensure(ctx, c.local, client.PriorityClasses, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value,
			Description: "Used for system critical pods that must run in the cluster."}); err != nil {
			return err
		}
	}
	if err := c.serviceRange(ctx); err != nil {
		return err
	}
	if err := c.apiService(ctx); err != nil {
		return err
	}
	return c.dnsService(ctx)
}

// ensure creates an object that is not there yet.
func ensure[T client.Object](ctx context.Context, l client.Interface, kind client.Kind[T], obj T) error {
	if _, ok := l.Informer(kind.GVR, client.Scope{}).Get(obj.GetNamespace(), obj.GetName()); ok {
		return nil
	}
	if _, err := kind.Create(ctx, l, obj); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s %s: %w", kind.GVK.Kind, obj.GetName(), err)
	}
	return nil
}

// serviceRange shows the range of Service addresses (KEP-1880).
func (c *cluster) serviceRange(ctx context.Context) error {
	const name = "kubernetes"
	if err := ensure(ctx, c.local, client.ServiceCIDRs, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceRange.String()}}}); err != nil {
		return err
	}
	r, err := client.ServiceCIDRs.Get(ctx, c.local, "", name)
	if err != nil {
		return fmt.Errorf("get ServiceCIDR %s: %w", name, err)
	}
	if len(r.Status.Conditions) > 0 {
		return nil
	}
	r = r.DeepCopy()
	r.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Reason: "ServiceCIDRReady", LastTransitionTime: metav1.Now(),
		Message: "Kubernetes default Service CIDR is ready"}}
	if _, err := client.ServiceCIDRs.UpdateStatus(ctx, c.local, r); err != nil {
		return fmt.Errorf("write the status of ServiceCIDR %s: %w", name, err)
	}
	return nil
}

// apiService is default/kubernetes and its endpoint, which moves with the address that is listened on.
func (c *cluster) apiService(ctx context.Context) error {
	const name = "kubernetes"
	labels := map[string]string{"component": "apiserver", "provider": "kubernetes"}
	if err := ensure(ctx, c.local, client.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels},
		Spec: corev1.ServiceSpec{ClusterIP: apiServiceIP, ClusterIPs: []string{apiServiceIP}, Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}}}); err != nil {
		return err
	}
	number := int32(6443)
	if _, err := fmt.Sscan(port(c.Listen), &number); err != nil {
		return fmt.Errorf("the API server's port: %w", err)
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{c.inside}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: &number, Protocol: ptr.To(corev1.ProtocolTCP)}}}
	have, ok := client.EndpointSlices.Informer(c.local, client.Scope{}).Get("default", name)
	if !ok {
		return ensure(ctx, c.local, client.EndpointSlices, slice)
	}
	if len(have.Endpoints) == 1 && have.Endpoints[0].Addresses[0] == c.inside && len(have.Ports) == 1 && *have.Ports[0].Port == number {
		return nil
	}
	slice.ResourceVersion = have.ResourceVersion
	if _, err := client.EndpointSlices.Update(ctx, c.local, slice); err != nil {
		return fmt.Errorf("update the endpoint of the API server: %w", err)
	}
	return nil
}

// dnsService is kube-system/kube-dns, the Service that pods ask names of. Behind it
// is this process.
func (c *cluster) dnsService(ctx context.Context) error {
	const name = "kube-dns"
	labels := map[string]string{"k8s-app": name, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}
	if err := ensure(ctx, c.local, client.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name, Labels: labels},
		Spec: corev1.ServiceSpec{ClusterIP: dnsServiceIP, ClusterIPs: []string{dnsServiceIP}, Ports: []corev1.ServicePort{
			{Name: "dns", Port: dnsPort, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: dnsPort, Protocol: corev1.ProtocolTCP}}}}); err != nil {
		return err
	}
	number := int32(dnsPort)
	return ensure(ctx, c.local, client.EndpointSlices, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name, "k8s-app": name}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{gateway().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("dns"), Port: &number, Protocol: ptr.To(corev1.ProtocolUDP)}, {Name: ptr.To("dns-tcp"), Port: &number, Protocol: ptr.To(corev1.ProtocolTCP)}}})
}

func (c *cluster) controllers(ctx context.Context) {
	manager := c.local.As("system:kube-controller-manager")
	for _, x := range []interface {
		Name() string
		Run(context.Context) error
	}{
		serviceaccount.New(manager, c.ca.CertPEM, c.log),
		namespace.New(manager, c.log),
		nodelifecycle.New(manager, c.log),
		endpointslice.New(manager, c.log),
		disruption.New(manager, c.log),
		deployment.New(manager, c.log),
		garbagecollector.New(manager, c.log),
		job.New(manager, c.log),
		ttlafterfinished.New(manager, c.log),
		replicaset.New(manager, c.log),
		replicaset.NewReplicationController(manager, c.log),
		daemonset.New(manager, c.log),
		statefulset.New(manager, c.log),
	} {
		c.part(ctx, x.Name(), x.Run)
	}
	scheduling := c.local.As("system:kube-scheduler")
	recorder := events.New(scheduling, "default-scheduler", "", c.log)
	c.part(ctx, "scheduler events", recorder.Run)
	c.part(ctx, "scheduler", scheduler.New(scheduler.Config{Client: scheduling, Recorder: recorder, Logger: c.log, Seed: uint64(time.Now().UnixNano())}).Run)
}

// node starts the runtime, the network and the kubelet of this machine.
func (c *cluster) node(ctx context.Context) (synced <-chan struct{}, stop func(), err error) {
	nodeIP, err := netip.ParseAddr(c.NodeIP)
	if err != nil {
		return nil, nil, fmt.Errorf("the node's address: %w", err)
	}
	net, err := podnet.Open(networkDir(c.DataDir), podRange)
	if err != nil {
		return nil, nil, err
	}
	if err := net.RouteServices(serviceRange); err != nil {
		return nil, nil, err
	}
	imageStore, err := Images(c.DataDir, c.log)
	if err != nil {
		return nil, nil, err
	}
	rt, err := runtime.New(runtime.Config{State: runtimeDir(c.DataDir), Root: filepath.Join(runtimeDir(c.DataDir), "root"), Images: imageStore,
		Network: podNetwork{net}, Version: c.Version, Logger: c.log})
	if err != nil {
		return nil, nil, err
	}
	c.part(ctx, "CRI socket", func(ctx context.Context) error { return rt.Serve(ctx, Socket(c.DataDir)) })
	names, err := dns.New(dns.Config{Client: c.local.As("system:serviceaccount:kube-system:coredns"), Domain: clusterDomain, Listen: netip.AddrPortFrom(gateway(), dnsPort),
		Sockets: podnet.Early(), Ranges: []netip.Prefix{podRange, serviceRange}, Logger: c.log})
	if err != nil {
		rt.Close()
		return nil, nil, err
	}
	c.part(ctx, "DNS", names.Run)
	self := c.local.As("system:node:"+c.NodeName, "system:nodes")
	c.part(ctx, "kube-proxy", kubeproxy.New(kubeproxy.Config{Client: c.local.As("system:kube-proxy"), NodeName: c.NodeName, NodeIP: nodeIP,
		Pods: podRange, Services: serviceRange, Logger: c.log}).Run)
	recorder := events.New(self, "kubelet", c.NodeName, c.log)
	c.part(ctx, "kubelet events", recorder.Run)
	k, err := kubelet.New(kubelet.Config{
		NodeName: c.NodeName, NodeIPs: []string{c.NodeIP}, Client: self, Runtime: rt, Images: rt,
		RootDir: kubeletDir(c.DataDir), LogDir: filepath.Join(c.DataDir, "logs"), ImageRoot: imageDir(c.DataDir),
		ClusterDomain: clusterDomain, ClusterDNS: []string{dnsServiceIP}, MaxPods: 110, Version: KubernetesVersion,
		Listen: ":" + kubeletPort, Recorder: recorder, Logger: c.log,
		TLS: &tls.Config{Certificates: []tls.Certificate{c.kubelet.TLS()}, ClientCAs: c.ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12},
		Authorize: func(r *http.Request) error {
			if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
				return errors.New("a client certificate is needed")
			}
			for _, o := range r.TLS.PeerCertificates[0].Subject.Organization {
				if o == user.SystemPrivilegedGroup {
					return nil
				}
			}
			return fmt.Errorf("%s may not use the kubelet", r.TLS.PeerCertificates[0].Subject.CommonName)
		},
	})
	if err != nil {
		rt.Close()
		return nil, nil, err
	}
	c.part(ctx, "kubelet", k.Run)
	return k.Synced(), rt.Close, nil
}

// podNetwork gives the runtime the pod network in its own terms.
type podNetwork struct{ net *podnet.Network }

func mappings(ports []runtime.PortMapping) []podnet.PortMapping {
	out := make([]podnet.PortMapping, len(ports))
	for i, p := range ports {
		out[i] = podnet.PortMapping{Protocol: p.Protocol, HostPort: p.HostPort, ContainerPort: p.ContainerPort}
	}
	return out
}

func (n podNetwork) Attach(ctx context.Context, id, path string, ports []runtime.PortMapping) ([]string, error) {
	addr, err := n.net.Attach(ctx, id, path, mappings(ports))
	if err != nil {
		return nil, err
	}
	return []string{addr.String()}, nil
}

func (n podNetwork) Restore(_ context.Context, id string, ports []runtime.PortMapping) error {
	return n.net.Restore(id, mappings(ports))
}

func (n podNetwork) Detach(ctx context.Context, id string) error { return n.net.Detach(ctx, id) }

// waitReady returns when the node is Ready and pods may come.
func (c *cluster) waitReady(ctx context.Context) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := false
	_ = client.Nodes.Informer(c.local, client.Scope{Name: c.NodeName}).Watch(ctx, func(e client.Event) {
		n, ok := e.Object.(*corev1.Node)
		if !ok || e.Type == client.Deleted || found {
			return
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue && len(nodelifecycle.Taints(n)) == len(n.Spec.Taints) {
				found = true
				cancel()
			}
		}
	})
	return found
}
