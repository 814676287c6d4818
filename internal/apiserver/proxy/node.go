package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Target is where a node's kubelet is reached and how.
type Target struct {
	Scheme string // https
	Host   string // address:port
	// RoundTripper makes plain requests, with the server's credentials.
	RoundTripper http.RoundTripper
	// Dial makes the connection of an upgrade; nil: a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TLS is used on that connection when Scheme is https.
	TLS *tls.Config
}

// NodeTransport says how a node is reached.
type NodeTransport interface {
	Target(ctx context.Context, node string) (*Target, error)
}

// GetNode returns the newest known state of a node.
type GetNode func(ctx context.Context, name string) (*corev1.Node, error)

// Nodes reaches kubelets at their nodes' addresses, with a client certificate.
type Nodes struct {
	get       GetNode
	tls       *tls.Config
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	transport *http.Transport
}

// kubeletPort is where a kubelet listens that does not say so.
const kubeletPort = 10250

// NewNodes returns a NodeTransport. config carries the client certificate, and
// the authorities by which kubelets are known; dial may be nil.
func NewNodes(get GetNode, config *tls.Config, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Nodes {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return &Nodes{get: get, tls: config, dial: dial, transport: &http.Transport{
		DialContext: dial, TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second,
	}}
}

// Close ends the connections that are idle.
func (n *Nodes) Close() { n.transport.CloseIdleConnections() }

// addressTypes is the order in which a node's addresses are tried.
var addressTypes = []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeInternalDNS, corev1.NodeExternalDNS, corev1.NodeHostName}

// Target returns where the kubelet of a node is.
func (n *Nodes) Target(ctx context.Context, node string) (*Target, error) {
	obj, err := n.get(ctx, node)
	if err != nil {
		return nil, err
	}
	address, err := nodeAddress(obj)
	if err != nil {
		return nil, err
	}
	port := int(obj.Status.DaemonEndpoints.KubeletEndpoint.Port)
	if port == 0 {
		port = kubeletPort
	}
	return &Target{
		Scheme: "https", Host: net.JoinHostPort(address, strconv.Itoa(port)),
		RoundTripper: n.transport, Dial: n.dial, TLS: n.tls,
	}, nil
}

func nodeAddress(node *corev1.Node) (string, error) {
	for _, t := range addressTypes {
		for _, a := range node.Status.Addresses {
			if a.Type == t && a.Address != "" {
				return a.Address, nil
			}
		}
	}
	return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no preferred addresses found; known addresses: %v", node.Status.Addresses))
}
