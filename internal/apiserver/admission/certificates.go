package admission

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Certificates asks whether a user may approve, sign or attest for a signer, and
// keeps client certificates from making their holder an administrator. It is
// Kubernetes' CertificateApproval, CertificateSigning, ClusterTrustBundleAttest
// and CertificateSubjectRestriction.
type Certificates struct{ Authorizer auth.Authorizer }

func forbid(a *rest.Attributes, format string, args ...any) error {
	return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, fmt.Errorf(format, args...))
}

// Admit writes down who asks for a certificate.
func (p Certificates) Admit(_ context.Context, a *rest.Attributes) error {
	if !is(a, "certificates.k8s.io", "certificatesigningrequests", rest.Create) {
		return nil
	}
	c, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.User == nil {
		return nil
	}
	// Never what the request says of itself.
	c.Spec.Username, c.Spec.UID, c.Spec.Groups, c.Spec.Extra = a.User.GetName(), a.User.GetUID(), slices.Clone(a.User.GetGroups()), nil
	if extra := a.User.GetExtra(); len(extra) > 0 {
		c.Spec.Extra = map[string]certificatesv1.ExtraValue{}
		for k, v := range extra {
			c.Spec.Extra[k] = slices.Clone(v)
		}
	}
	return nil
}

func (p Certificates) Validate(ctx context.Context, a *rest.Attributes) error {
	if a.Resource.GVR.Group != certificatesv1.GroupName {
		return nil
	}
	switch a.Resource.GVR.Resource {
	case "certificatesigningrequests":
		return p.request(ctx, a)
	case "clustertrustbundles":
		return p.bundle(ctx, a)
	}
	return nil
}

func (p Certificates) request(ctx context.Context, a *rest.Attributes) error {
	if a.Verb == rest.Create && a.Subresource == "" {
		csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
			return nil
		}
		parsed, err := parseRequest(csr.Spec.Request)
		if err != nil {
			return forbid(a, "failed to parse CSR: %w", err)
		}
		if slices.Contains(parsed.Subject.Organization, user.SystemPrivilegedGroup) {
			return forbid(a, "use of %s signer with system:masters group is not allowed", certificatesv1.KubeAPIServerClientSignerName)
		}
		return nil
	}
	old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Verb != rest.Update {
		return nil
	}
	switch a.Subresource {
	case "approval":
		if !p.may(ctx, a, "approve", old.Spec.SignerName) {
			return forbid(a, "user not permitted to approve requests with signerName %q", old.Spec.SignerName)
		}
	case "status":
		now, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || slices.Equal(now.Status.Certificate, old.Status.Certificate) && apiequality.Semantic.DeepEqual(now.Status.Conditions, old.Status.Conditions) {
			return nil
		}
		if !p.may(ctx, a, "sign", old.Spec.SignerName) {
			return forbid(a, "user not permitted to sign requests with signerName %q", old.Spec.SignerName)
		}
	}
	return nil
}

func (p Certificates) bundle(ctx context.Context, a *rest.Attributes) error {
	bundle, ok := a.Object.(*certificatesv1.ClusterTrustBundle)
	if !ok || bundle.Spec.SignerName == "" || a.Verb == rest.Update && onlyOwners(a.Object, a.Old) {
		return nil
	}
	if !p.may(ctx, a, "attest", bundle.Spec.SignerName) {
		return forbid(a, "user not permitted to attest for signerName %q", bundle.Spec.SignerName)
	}
	return nil
}

// onlyOwners reports whether only what garbage collection changes is different.
func onlyOwners(obj, old runtime.Object) bool {
	c := obj.DeepCopyObject()
	now, err1 := apimeta.Accessor(c)
	was, err2 := apimeta.Accessor(old)
	if err1 != nil || err2 != nil {
		return false
	}
	now.SetOwnerReferences(was.GetOwnerReferences())
	now.SetFinalizers(was.GetFinalizers())
	now.SetManagedFields(was.GetManagedFields())
	return apiequality.Semantic.DeepEqual(c, old)
}

// may reports whether a user has a verb on a signer, or on all of its domain.
func (p Certificates) may(ctx context.Context, a *rest.Attributes, verb, signer string) bool {
	if rest.Trusted(ctx) {
		return true
	}
	if p.Authorizer == nil || a.User == nil {
		return false
	}
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		ok, _, err := p.Authorizer.Authorize(ctx, auth.Attributes{User: a.User, Verb: verb, Name: name, APIGroup: certificatesv1.GroupName, APIVersion: "*", Resource: "signers", ResourceRequest: true})
		if err == nil && ok {
			return true
		}
	}
	return false
}

func parseRequest(data []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}
