package admission

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// Certificates writes down who asks for a certificate, and lets only those approve
// or sign who may do so for the signer (CertificateApproval, CertificateSigning and
// CertificateSubjectRestriction).
type Certificates struct{ Authorizer auth.Authorizer }

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
	if a.Resource.GVR.Resource != "certificatesigningrequests" || a.Resource.GVR.Group != "certificates.k8s.io" || a.Object == nil {
		return nil
	}
	c, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return nil
	}
	forbidden := func(format string, args ...any) error {
		return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), c.Name, fmt.Errorf(format, args...))
	}
	switch {
	case a.Verb == rest.Create && a.Subresource == "":
		if c.Spec.SignerName == certificatesv1.KubeAPIServerClientSignerName && slices.Contains(organizations(c), user.SystemPrivilegedGroup) {
			return forbidden("use of %s signer with %s group is not allowed", c.Spec.SignerName, user.SystemPrivilegedGroup)
		}
	case a.Subresource == "approval":
		if !p.may(ctx, a.User, "approve", c.Spec.SignerName) {
			return forbidden("user not permitted to approve requests with signerName %q", c.Spec.SignerName)
		}
	case a.Subresource == "status":
		old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
		if ok && slices.Equal(old.Status.Certificate, c.Status.Certificate) && apiequality.Semantic.DeepEqual(old.Status.Conditions, c.Status.Conditions) {
			return nil
		}
		if !p.may(ctx, a.User, "sign", c.Spec.SignerName) {
			return forbidden("user not permitted to sign requests with signerName %q", c.Spec.SignerName)
		}
	}
	return nil
}

func organizations(c *certificatesv1.CertificateSigningRequest) []string {
	block, _ := pem.Decode(c.Spec.Request)
	if block == nil {
		return nil
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil // validation says so
	}
	return r.Subject.Organization
}

// may asks for the signer itself and for all of its domain.
func (p Certificates) may(ctx context.Context, who user.Info, verb, signer string) bool {
	if p.Authorizer == nil || who == nil {
		return true
	}
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		ok, _, err := p.Authorizer.Authorize(ctx, auth.Attributes{User: who, Verb: verb, APIGroup: "certificates.k8s.io", APIVersion: "*", Resource: "signers", Name: name, ResourceRequest: true})
		if err == nil && ok {
			return true
		}
	}
	return false
}
