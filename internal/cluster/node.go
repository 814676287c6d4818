package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/nodelifecycle"
	"github.com/proa-dev/proa/internal/kubelet"
	"github.com/proa-dev/proa/internal/network/dns"
	"github.com/proa-dev/proa/internal/network/kubeproxy"
	"github.com/proa-dev/proa/internal/network/podnet"
	"github.com/proa-dev/proa/internal/network/routes"
	"github.com/proa-dev/proa/internal/runtime"
)

// member is a machine of the cluster: what its runtime, network and kubelet need.
type member struct {
	data, name, registries, version string
	ip                              netip.Addr
	pods                            netip.Prefix // what this node has of clusterRange
	// self is the node's own client; proxy and names are those of its kube-proxy and
	// its name server.
	self, proxy, names client.Interface
	tls                *tls.Config // of the kubelet's server
	part               func(ctx context.Context, name string, run func(context.Context) error)
	log                *slog.Logger
}

// node starts the runtime, the network and the kubelet of the machine that serves.
func (c *cluster) node(ctx context.Context) (synced <-chan struct{}, stop func(), err error) {
	ip, err := netip.ParseAddr(c.NodeIP)
	if err != nil {
		return nil, nil, fmt.Errorf("the node's address: %w", err)
	}
	m := &member{data: c.DataDir, name: c.NodeName, registries: c.Registries, version: c.Version, ip: ip, pods: podRange,
		self: c.local.As("system:node:"+c.NodeName, "system:nodes"), proxy: c.local.As("system:kube-proxy"), names: c.local.As("system:serviceaccount:kube-system:coredns"),
		tls:  &tls.Config{Certificates: []tls.Certificate{c.kubelet.TLS()}, ClientCAs: c.ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12},
		part: c.part, log: c.log}
	return m.start(ctx)
}

// start starts the machine's parts; stop is called when they have ended.
func (m *member) start(ctx context.Context) (synced <-chan struct{}, stop func(), err error) {
	net, err := podnet.Open(networkDir(m.data), m.pods, clusterRange)
	if err != nil {
		return nil, nil, err
	}
	if err := net.RouteServices(serviceRange); err != nil {
		return nil, nil, err
	}
	rt, err := newRuntime(m.data, m.registries, m.version, net, m.log)
	if err != nil {
		return nil, nil, err
	}
	m.part(ctx, "pod network", func(ctx context.Context) error { return net.Run(ctx, m.log) })
	m.part(ctx, "CRI socket", func(ctx context.Context) error { return rt.Serve(ctx, Socket(m.data), nil) })
	names, err := dns.New(dns.Config{Client: m.names, Domain: clusterDomain, Listen: netip.AddrPortFrom(gatewayOf(m.pods), dnsPort),
		Sockets: podnet.Early(), Ranges: []netip.Prefix{clusterRange, serviceRange}, Logger: m.log})
	if err != nil {
		rt.Close()
		return nil, nil, err
	}
	m.part(ctx, "DNS", names.Run)
	m.part(ctx, "kube-proxy", kubeproxy.New(kubeproxy.Config{Client: m.proxy, NodeName: m.name, NodeIP: m.ip,
		Pods: clusterRange, Services: serviceRange, Logger: m.log}).Run)
	m.part(ctx, "routes", routes.New(routes.Config{Client: m.self, NodeName: m.name, NodeIP: m.ip, Pods: m.pods, Logger: m.log}).Run)
	recorder := events.New(m.self, "kubelet", m.name, m.log)
	m.part(ctx, "kubelet events", recorder.Run)
	k, err := kubelet.New(kubelet.Config{
		NodeName: m.name, NodeIPs: []string{m.ip.String()}, Client: m.self, Runtime: rt, Images: rt,
		CgroupRoot: cgroupRoot(m.data), RootDir: kubeletDir(m.data), LogDir: filepath.Join(m.data, "logs"), ImageRoot: imageDir(m.data),
		ClusterDomain: clusterDomain, ClusterDNS: []string{dnsServiceIP}, MaxPods: 110, Version: KubernetesVersion,
		Listen: ":" + kubeletPort, Recorder: recorder, Logger: m.log, TLS: m.tls, Authorize: mayUseKubelet,
	})
	if err != nil {
		rt.Close()
		return nil, nil, err
	}
	m.part(ctx, "kubelet", k.Run)
	return k.Synced(), rt.Close, nil
}

// mayUseKubelet lets the API server in.
func mayUseKubelet(r *http.Request) error {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return errors.New("a client certificate is needed")
	}
	for _, o := range r.TLS.PeerCertificates[0].Subject.Organization {
		if o == user.SystemPrivilegedGroup {
			return nil
		}
	}
	return fmt.Errorf("%s may not use the kubelet", r.TLS.PeerCertificates[0].Subject.CommonName)
}

// podNetwork gives the runtime the pod network in its own terms.
type podNetwork struct{ net *podnet.Network }

func mappings(ports []runtime.PortMapping) ([]podnet.PortMapping, error) {
	out := make([]podnet.PortMapping, len(ports))
	for i, p := range ports {
		out[i] = podnet.PortMapping{Protocol: p.Protocol, HostPort: p.HostPort, ContainerPort: p.ContainerPort}
		if p.HostIP == "" {
			continue
		}
		var err error
		if out[i].HostIP, err = netip.ParseAddr(p.HostIP); err != nil {
			return nil, fmt.Errorf("the host's address of host port %d: %w", p.HostPort, err)
		}
	}
	return out, nil
}

func (n podNetwork) Attach(ctx context.Context, id, path string, ports []runtime.PortMapping) ([]string, error) {
	m, err := mappings(ports)
	if err != nil {
		return nil, err
	}
	addr, err := n.net.Attach(ctx, id, path, m)
	if err != nil {
		return nil, err
	}
	return []string{addr.String()}, nil
}

func (n podNetwork) Take(ctx context.Context, id, path string, ports []runtime.PortMapping) ([]string, bool, error) {
	m, err := mappings(ports)
	if err != nil {
		return nil, false, err
	}
	addr, ok, err := n.net.Take(ctx, id, path, m)
	if err != nil || !ok {
		return nil, false, err
	}
	return []string{addr.String()}, true, nil
}

func (n podNetwork) Restore(_ context.Context, id string, ports []runtime.PortMapping) error {
	m, err := mappings(ports)
	if err != nil {
		return err
	}
	return n.net.Restore(id, m)
}

func (n podNetwork) Detach(ctx context.Context, id string) error { return n.net.Detach(ctx, id) }

// waitReady returns when the node is Ready and pods may come.
func waitReady(ctx context.Context, in client.Interface, node string) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := false
	_ = client.Nodes.Informer(in, client.Scope{Name: node}).Watch(ctx, func(e client.Event) {
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
