package certificates

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api/rules"
)

const (
	minSeconds    = 600
	minPodSeconds = 3600
	maxPodSeconds = 91 * 86400
	maxStub       = 10 * 1024
	maxBundle     = 1 << 20

	pemRequest     = "CERTIFICATE REQUEST"
	pemCertificate = "CERTIFICATE"
)

// usages are what a certificate may be asked to be used for.
func usages() []certificatesv1.KeyUsage {
	return []certificatesv1.KeyUsage{
		certificatesv1.UsageAny, certificatesv1.UsageCRLSign, certificatesv1.UsageCertSign, certificatesv1.UsageClientAuth,
		certificatesv1.UsageCodeSigning, certificatesv1.UsageContentCommitment, certificatesv1.UsageDataEncipherment,
		certificatesv1.UsageDecipherOnly, certificatesv1.UsageDigitalSignature, certificatesv1.UsageEmailProtection,
		certificatesv1.UsageEncipherOnly, certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel,
		certificatesv1.UsageIPsecUser, certificatesv1.UsageKeyAgreement, certificatesv1.UsageKeyEncipherment,
		certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC, certificatesv1.UsageOCSPSigning,
		certificatesv1.UsageSMIME, certificatesv1.UsageServerAuth, certificatesv1.UsageSigning, certificatesv1.UsageTimestamping,
	}
}

func validateRequest(c *certificatesv1.CertificateSigningRequest) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if err := parseRequest(c.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(spec.Child("request"), c.Spec.Request, err.Error()))
	}
	if len(c.Spec.Usages) == 0 {
		errs = append(errs, field.Required(spec.Child("usages"), ""))
	}
	known := usages()
	for i, u := range c.Spec.Usages {
		if !slices.Contains(known, u) {
			errs = append(errs, field.NotSupported(spec.Child("usages").Index(i), u, known))
		}
		if slices.Contains(c.Spec.Usages[:i], u) {
			errs = append(errs, field.Duplicate(spec.Child("usages").Index(i), u))
		}
	}
	errs = append(errs, validateSignerName(c.Spec.SignerName, spec.Child("signerName"))...)
	if s := c.Spec.ExpirationSeconds; s != nil && *s < minSeconds {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), *s, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	return append(errs, validateConditions(c)...)
}

func parseRequest(text []byte) error {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemRequest {
		return errors.New("PEM block type must be " + pemRequest)
	}
	_, err := x509.ParseCertificateRequest(block.Bytes)
	return err
}

// validateSignerName wants "domain/path", as long as names of custom resources may be.
func validateSignerName(name string, path *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	domain, rest, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(rest, "/") {
		return field.ErrorList{field.Invalid(path, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	errs = append(errs, rules.Messages(domain, path, validation.IsDNS1123Subdomain(domain))...)
	if !strings.Contains(domain, ".") {
		errs = append(errs, field.Invalid(path, domain, "should be a domain with at least two segments separated by dots"))
	}
	for part := range strings.SplitSeq(rest, ".") {
		errs = append(errs, rules.Messages(part, path, validation.IsDNS1123Label(part))...)
	}
	if limit := 571; len(name) > limit { // a custom resource's name and group, and the namespace of one
		errs = append(errs, field.TooLong(path, name, limit))
	}
	return errs
}

func validateConditions(c *certificatesv1.CertificateSigningRequest) (errs field.ErrorList) {
	path := field.NewPath("status", "conditions")
	seen := map[certificatesv1.RequestConditionType]bool{}
	for i, condition := range c.Status.Conditions {
		at := path.Index(i)
		if condition.Type == "" {
			errs = append(errs, field.Required(at.Child("type"), ""))
		}
		if seen[condition.Type] {
			errs = append(errs, field.Duplicate(at.Child("type"), condition.Type))
		}
		seen[condition.Type] = true
		supported := []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown}
		switch condition.Type {
		case certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			supported = []corev1.ConditionStatus{corev1.ConditionTrue} // these happen or do not
		}
		errs = append(errs, rules.OneOf(condition.Status, at.Child("status"), "", supported...)...)
	}
	if seen[certificatesv1.CertificateApproved] && seen[certificatesv1.CertificateDenied] {
		errs = append(errs, field.Invalid(path, certificatesv1.CertificateDenied, "Approved and Denied conditions are mutually exclusive"))
	}
	return errs
}

func decided(c *certificatesv1.CertificateSigningRequest) (list []certificatesv1.CertificateSigningRequestCondition) {
	for _, condition := range c.Status.Conditions {
		if condition.Type == certificatesv1.CertificateApproved || condition.Type == certificatesv1.CertificateDenied {
			list = append(list, condition)
		}
	}
	return list
}

// ValidateApproval checks a write of the approval subresource: a decision is for good.
func ValidateApproval(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := append(validateRequest(c), keepsConditions(c, old)...)
	if !bytes.Equal(c.Status.Certificate, old.Status.Certificate) {
		errs = append(errs, field.Forbidden(field.NewPath("status", "certificate"), "updates may not set certificate content"))
	}
	return errs
}

// validateStatus checks a write of the status: of the conditions, it may not
// make the decision, which the approval subresource is for.
func validateStatus(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	errs := append(validateConditions(c), keepsConditions(c, old)...)
	path := field.NewPath("status", "conditions")
	was := decided(old)
	for _, condition := range decided(c) {
		if !slices.ContainsFunc(was, func(o certificatesv1.CertificateSigningRequestCondition) bool { return o.Type == condition.Type }) {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("updates may not add a condition of type %q", condition.Type)))
		}
	}
	at := field.NewPath("status", "certificate")
	switch now, before := c.Status.Certificate, old.Status.Certificate; {
	case bytes.Equal(now, before):
	case len(before) > 0:
		errs = append(errs, field.Forbidden(at, "updates may not modify existing certificate content"))
	default:
		if err := parseCertificates(now); err != nil {
			errs = append(errs, field.Invalid(at, "<certificate data>", err.Error()))
		}
	}
	return errs
}

// keepsConditions refuses that a decision or a failure is taken back or said twice.
func keepsConditions(c, old *certificatesv1.CertificateSigningRequest) (errs field.ErrorList) {
	path := field.NewPath("status", "conditions")
	for _, kind := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed} {
		of := func(list []certificatesv1.CertificateSigningRequestCondition) (out []certificatesv1.CertificateSigningRequestCondition) {
			for _, condition := range list {
				if condition.Type == kind {
					out = append(out, condition)
				}
			}
			return out
		}
		if was, now := of(old.Status.Conditions), of(c.Status.Conditions); len(now) < len(was) {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("updates may not remove a condition of type %q", kind)))
		} else if len(was) > 0 && len(now) == len(was) && !rules.Same(was, now) {
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("updates may not modify a condition of type %q", kind)))
		}
	}
	return errs
}

func parseCertificates(text []byte) error {
	found := false
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		found = true
		if block.Type != pemCertificate {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		}
		if len(block.Headers) != 0 {
			return errors.New("no PEM block headers are permitted")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
	}
	if !found {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

// validateBundleName wants a DNS subdomain, behind the signer's name when there
// is one: "example.com:signer:name".
func validateBundleName(name string, prefix bool) []string {
	last := name[strings.LastIndex(name, ":")+1:]
	if prefix {
		last = strings.TrimRight(last, "-")
	}
	return validation.IsDNS1123Subdomain(last)
}

func validateBundle(b *certificatesv1.ClusterTrustBundle) (errs field.ErrorList) {
	name := field.NewPath("metadata", "name")
	if signer := b.Spec.SignerName; signer != "" {
		errs = append(errs, validateSignerName(signer, field.NewPath("spec", "signerName"))...)
		if want := strings.ReplaceAll(signer, "/", ":") + ":"; !strings.HasPrefix(b.Name, want) {
			errs = append(errs, field.Invalid(name, b.Name, fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, want)))
		}
	} else if strings.Contains(b.Name, ":") {
		errs = append(errs, field.Invalid(name, b.Name, "ClusterTrustBundle without signer name must not have \":\" in its name"))
	}
	at := field.NewPath("spec", "trustBundle")
	if len(b.Spec.TrustBundle) > maxBundle {
		return append(errs, field.TooLong(at, "<value omitted>", maxBundle))
	}
	if err := parseCertificates([]byte(b.Spec.TrustBundle)); err != nil {
		errs = append(errs, field.Invalid(at, "<value omitted>", err.Error()))
	}
	return errs
}

func validatePodRequest(p *certificatesv1.PodCertificateRequest) field.ErrorList {
	spec := field.NewPath("spec")
	s := &p.Spec
	errs := validateSignerName(s.SignerName, spec.Child("signerName"))
	for _, f := range []struct{ name, value string }{
		{"podName", s.PodName}, {"serviceAccountName", s.ServiceAccountName}, {"nodeName", string(s.NodeName)},
	} {
		errs = append(errs, rules.Subdomain(f.value, spec.Child(f.name))...)
	}
	for _, f := range []struct{ name, value string }{
		{"podUID", string(s.PodUID)}, {"serviceAccountUID", string(s.ServiceAccountUID)}, {"nodeUID", string(s.NodeUID)},
	} {
		errs = append(errs, rules.Required(f.value, spec.Child(f.name), "")...)
	}
	seconds := spec.Child("maxExpirationSeconds")
	switch n := s.MaxExpirationSeconds; {
	case n == nil:
		errs = append(errs, field.Required(seconds, "must be set"))
	case *n < minPodSeconds:
		errs = append(errs, field.Invalid(seconds, *n, fmt.Sprintf("must be greater than or equal to %d", minPodSeconds)))
	case *n > maxPodSeconds:
		errs = append(errs, field.Invalid(seconds, *n, fmt.Sprintf("must be less than or equal to %d", maxPodSeconds)))
	}
	stub := spec.Child("stubPKCS10Request")
	switch {
	case len(s.StubPKCS10Request) == 0:
		errs = append(errs, field.Required(stub, ""))
	case len(s.StubPKCS10Request) > maxStub:
		errs = append(errs, field.TooLong(stub, "<value omitted>", maxStub))
	default:
		request, err := x509.ParseCertificateRequest(s.StubPKCS10Request)
		if err != nil {
			errs = append(errs, field.Invalid(stub, "<value omitted>", "must be a PKCS#10 certificate signing request: "+err.Error()))
		} else if err := request.CheckSignature(); err != nil {
			errs = append(errs, field.Invalid(stub, "<value omitted>", "signature must prove possession of the key: "+err.Error()))
		}
	}
	for key := range s.UnverifiedUserAnnotations {
		errs = append(errs, validation.IsDomainPrefixedKey(spec.Child("unverifiedUserAnnotations").Key(key), key)...)
	}
	return errs
}

func samePodRequest(p, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	return rules.Immutable(p.Spec, old.Spec, field.NewPath("spec"))
}

func validatePodRequestStatus(p, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	status := field.NewPath("status")
	errs := rules.Conditions(p.Status.Conditions, status.Child("conditions"))
	for i, c := range p.Status.Conditions {
		errs = append(errs, rules.OneOf(c.Type, status.Child("conditions").Index(i).Child("type"), "",
			certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed, certificatesv1.PodCertificateRequestConditionTypeIssued)...)
	}
	if old.Status.CertificateChain != "" {
		errs = append(errs, rules.Immutable(p.Status.CertificateChain, old.Status.CertificateChain, status.Child("certificateChain"))...)
	} else if p.Status.CertificateChain != "" {
		if err := parseCertificates([]byte(p.Status.CertificateChain)); err != nil {
			errs = append(errs, field.Invalid(status.Child("certificateChain"), "<value omitted>", err.Error()))
		}
	}
	return errs
}
