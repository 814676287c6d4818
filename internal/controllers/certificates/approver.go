package certificates

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	bootstrappers = "system:bootstrappers"
	nodes         = "system:nodes"
)

// How long requests stay, from their last change.
const (
	keepPending = 24 * time.Hour
	keepDecided = time.Hour
)

// Approver decides on the requests of nodes, and removes old requests.
type Approver struct {
	client client.Interface
	loop   *loop.Loop[string]
	all    client.Typed[*certificatesv1.CertificateSigningRequest]
	log    *slog.Logger
	// reserved has the addresses that no node has: of Services, of pods.
	reserved []netip.Prefix
}

// NewApprover returns the controller. No node gets a certificate for an address in
// the reserved ranges: with it, it could pass for the API server.
func NewApprover(c client.Interface, reserved []netip.Prefix, log *slog.Logger) *Approver {
	a := &Approver{client: c, log: log, reserved: reserved, all: client.CertificateSigningRequests.Informer(c, client.Scope{})}
	a.loop = loop.New("csrapproving", log, a.sync)
	return a
}

func (a *Approver) Name() string { return "csrapproving" }

// Run works until ctx ends.
func (a *Approver) Run(ctx context.Context) error {
	return a.loop.Run(ctx, 1, loop.Source{Informer: a.all.Informer, Handle: func(e client.Event) {
		if e.Object != nil && e.Type != client.Deleted {
			a.loop.Add(e.Object.GetName())
		}
	}})
}

func (a *Approver) sync(ctx context.Context, name string) error {
	c, ok := a.all.Get("", name)
	if !ok {
		return nil
	}
	left := left(c, time.Now())
	if left <= 0 {
		if err := client.CertificateSigningRequests.Delete(ctx, a.client, "", name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &c.UID, ResourceVersion: &c.ResourceVersion}}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove the old CertificateSigningRequest %s: %w", name, err)
		}
		return nil
	}
	a.loop.After(name, left)
	if len(c.Status.Certificate) > 0 || len(c.Status.Conditions) > 0 {
		return nil
	}
	kind, reason, message, err := a.decide(ctx, c)
	if err != nil || kind == "" {
		return err
	}
	c = c.DeepCopy()
	c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: kind, Status: corev1.ConditionTrue,
		Reason: reason, Message: message, LastUpdateTime: metav1.Now(), LastTransitionTime: metav1.Now()})
	if _, err := a.client.Update(ctx, client.CertificateSigningRequests.GVR, "", "approval", c, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("decide on CertificateSigningRequest %s: %w", name, err)
	}
	a.log.Info("decided on a certificate", "kind", "CertificateSigningRequest", "name", name, "user", c.Spec.Username, "decision", kind, "message", message)
	return nil
}

// left is how long a request still stays.
func left(c *certificatesv1.CertificateSigningRequest, now time.Time) time.Duration {
	last, keep := c.CreationTimestamp.Time, keepPending
	for _, x := range c.Status.Conditions {
		if keep = keepDecided; x.LastUpdateTime.After(last) {
			last = x.LastUpdateTime.Time
		}
	}
	return last.Add(keep).Sub(now)
}

// decide says what becomes of a request of a node; of others nothing.
func (a *Approver) decide(ctx context.Context, c *certificatesv1.CertificateSigningRequest) (kind certificatesv1.RequestConditionType, reason, message string, err error) {
	request, bad := parse(c)
	if bad != nil {
		return "", "", "", nil // whoever looks at it may say so
	}
	node := strings.TrimPrefix(request.Subject.CommonName, nodeUser)
	self := c.Spec.Username == request.Subject.CommonName && slices.Contains(c.Spec.Groups, nodes)
	switch c.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		if nodeClient(request, c.Spec.Usages) != nil {
			return "", "", "", nil
		}
		if self {
			return certificatesv1.CertificateApproved, "AutoApproved", "Auto approving self kubelet client certificate: the node renews its own.", nil
		}
		if !slices.Contains(c.Spec.Groups, bootstrappers) {
			return "", "", "", nil
		}
		// A name is given once: with a token alone nobody becomes a node that is there.
		switch _, err := client.Nodes.Get(ctx, a.client, "", node); {
		case err == nil:
			return certificatesv1.CertificateDenied, "NodeExists", fmt.Sprintf("node %q is in the cluster already: choose another name, or delete the Node first", node), nil
		case !apierrors.IsNotFound(err):
			return "", "", "", fmt.Errorf("look for node %s: %w", node, err)
		}
		return certificatesv1.CertificateApproved, "AutoApproved", "Auto approving kubelet client certificate: a node joins with a bootstrap token.", nil
	case certificatesv1.KubeletServingSignerName:
		if !self || signers[c.Spec.SignerName](request, c.Spec.Usages) != nil {
			return "", "", "", nil
		}
		return a.serving(ctx, node, request)
	}
	return "", "", "", nil
}

// serving approves a certificate for the names of the node itself.
func (a *Approver) serving(ctx context.Context, node string, request *x509.CertificateRequest) (kind certificatesv1.RequestConditionType, reason, message string, err error) {
	for _, name := range request.DNSNames {
		if name != node {
			return certificatesv1.CertificateDenied, "NotItsName", fmt.Sprintf("node %q may not serve as %q", node, name), nil
		}
	}
	others, err := client.Nodes.List(ctx, a.client, "", metav1.ListOptions{})
	if err != nil {
		return "", "", "", fmt.Errorf("look at the nodes' addresses: %w", err)
	}
	for _, ip := range request.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		if addr = addr.Unmap(); addr.IsLoopback() || slices.ContainsFunc(a.reserved, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return certificatesv1.CertificateDenied, "NotItsAddress", fmt.Sprintf("%s is no address of a node", ip), nil
		}
		for _, n := range others {
			if n.Name != node && slices.ContainsFunc(n.Status.Addresses, func(x corev1.NodeAddress) bool { return x.Address == ip.String() }) {
				return certificatesv1.CertificateDenied, "NotItsAddress", fmt.Sprintf("%s is the address of node %q", ip, n.Name), nil
			}
		}
	}
	return certificatesv1.CertificateApproved, "AutoApproved", "Auto approving the serving certificate of a node for its own names.", nil
}
