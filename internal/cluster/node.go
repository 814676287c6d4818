package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

// node starts the runtime, the network and the kubelet of this machine.
func (c *cluster) node(ctx context.Context) (synced <-chan struct{}, stop func(), err error) {
	nodeIP, err := netip.ParseAddr(c.NodeIP)
	if err != nil {
		return nil, nil, fmt.Errorf("the node's address: %w", err)
	}
	net, err := podnet.Open(networkDir(c.DataDir), podRange, clusterRange)
	if err != nil {
		return nil, nil, err
	}
	if err := net.RouteServices(serviceRange); err != nil {
		return nil, nil, err
	}
	rt, err := newRuntime(c.DataDir, c.Registries, c.Version, net, c.log)
	if err != nil {
		return nil, nil, err
	}
	c.part(ctx, "pod network", func(ctx context.Context) error { return net.Run(ctx, c.log) })
	c.part(ctx, "CRI socket", func(ctx context.Context) error { return rt.Serve(ctx, Socket(c.DataDir), nil) })
	names, err := dns.New(dns.Config{Client: c.local.As("system:serviceaccount:kube-system:coredns"), Domain: clusterDomain, Listen: netip.AddrPortFrom(gateway(), dnsPort),
		Sockets: podnet.Early(), Ranges: []netip.Prefix{clusterRange, serviceRange}, Logger: c.log})
	if err != nil {
		rt.Close()
		return nil, nil, err
	}
	c.part(ctx, "DNS", names.Run)
	self := c.local.As("system:node:"+c.NodeName, "system:nodes")
	c.part(ctx, "kube-proxy", kubeproxy.New(kubeproxy.Config{Client: c.local.As("system:kube-proxy"), NodeName: c.NodeName, NodeIP: nodeIP,
		Pods: clusterRange, Services: serviceRange, Logger: c.log}).Run)
	c.part(ctx, "routes", routes.New(routes.Config{Client: self, NodeName: c.NodeName, NodeIP: nodeIP, Pods: podRange, Logger: c.log}).Run)
	recorder := events.New(self, "kubelet", c.NodeName, c.log)
	c.part(ctx, "kubelet events", recorder.Run)
	k, err := kubelet.New(kubelet.Config{
		NodeName: c.NodeName, NodeIPs: []string{c.NodeIP}, Client: self, Runtime: rt, Images: rt,
		CgroupRoot: cgroupRoot(c.DataDir), RootDir: kubeletDir(c.DataDir), LogDir: filepath.Join(c.DataDir, "logs"), ImageRoot: imageDir(c.DataDir),
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
