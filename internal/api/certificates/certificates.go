// Package certificates holds the rules of the API group certificates.k8s.io. It
// signs and approves nothing.
package certificates

import (
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := certificatesv1.SchemeGroupVersion
	return []*api.Resource{signingRequests(gv), trustBundles(gv), podRequests(gv)}
}

func signingRequests(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](gv, "certificatesigningrequests", "csr")
	r.UnconditionalUpdate = true
	r.Subresources = []string{"approval"}
	r.ValidateName = path.ValidatePathSegmentName
	r.FieldLabels = []string{"spec.signerName"}
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Age(),
		rules.Text("SignerName", "The signer that is asked."),
		rules.Text("Requestor", "The user that asks."),
		rules.Text("RequestedDuration", "How long the certificate shall be valid."),
		rules.Text("Condition", "What has become of the request."),
	}
	return api.Kind[*certificatesv1.CertificateSigningRequest]{
		Resource: r,
		Validate: validateRequest,
		// A request is what it is: whoever approves it must be able to trust that.
		PrepareForUpdate: func(c, old *certificatesv1.CertificateSigningRequest) { c.Spec = *old.Spec.DeepCopy() },
		ValidateUpdate: func(c, _ *certificatesv1.CertificateSigningRequest) field.ErrorList {
			return validateRequest(c)
		},
		CopyStatus:           func(dst, src *certificatesv1.CertificateSigningRequest) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: validateStatus,
		Fields: func(c *certificatesv1.CertificateSigningRequest) fields.Set {
			return fields.Set{"spec.signerName": c.Spec.SignerName}
		},
		Row: func(c *certificatesv1.CertificateSigningRequest) []any {
			wanted := rules.None
			if s := c.Spec.ExpirationSeconds; s != nil {
				wanted = duration.HumanDuration(time.Duration(*s) * time.Second)
			}
			signer := c.Spec.SignerName
			if signer == "" {
				signer = rules.None
			}
			return []any{c.Name, rules.Created(c), signer, c.Spec.Username, wanted, state(c)}
		},
	}.Erase()
}

func state(c *certificatesv1.CertificateSigningRequest) string {
	var approved, denied, failed bool
	for _, condition := range c.Status.Conditions {
		switch condition.Type {
		case certificatesv1.CertificateApproved:
			approved = true
		case certificatesv1.CertificateDenied:
			denied = true
		case certificatesv1.CertificateFailed:
			failed = true
		}
	}
	text := "Pending"
	switch { // denial counts more than approval
	case denied:
		text = "Denied"
	case approved:
		text = "Approved"
	}
	if failed {
		text += ",Failed"
	}
	if len(c.Status.Certificate) > 0 {
		text += ",Issued"
	}
	return text
}

func trustBundles(gv schema.GroupVersion) *api.Resource {
	r := rules.Cluster[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList](gv, "clustertrustbundles")
	r.FieldLabels = []string{"spec.signerName"}
	r.ValidateName = validateBundleName
	r.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Text("SignerName", "The signer whose roots these are.")}
	return api.Kind[*certificatesv1.ClusterTrustBundle]{
		Resource: r,
		Validate: validateBundle,
		ValidateUpdate: func(b, old *certificatesv1.ClusterTrustBundle) field.ErrorList {
			return append(validateBundle(b), rules.Immutable(b.Spec.SignerName, old.Spec.SignerName, field.NewPath("spec", "signerName"))...)
		},
		Fields: func(b *certificatesv1.ClusterTrustBundle) fields.Set {
			return fields.Set{"spec.signerName": b.Spec.SignerName}
		},
		Row: func(b *certificatesv1.ClusterTrustBundle) []any {
			signer := b.Spec.SignerName
			if signer == "" {
				signer = rules.None
			}
			return []any{b.Name, signer}
		},
	}.Erase()
}

func podRequests(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList](gv, "podcertificaterequests")
	r.FieldLabels = []string{"spec.signerName", "spec.podName", "spec.nodeName"}
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("PodName", "The pod that the certificate is for."),
		rules.Text("ServiceAccountName", "The service account of the pod."),
		rules.Text("NodeName", "The node of the pod."),
		rules.Text("SignerName", "The signer that is asked."),
		rules.Text("State", "What has become of the request."),
		rules.Age(),
	}
	return api.Kind[*certificatesv1.PodCertificateRequest]{
		Resource:             r,
		Default:              func(p *certificatesv1.PodCertificateRequest) { rules.Refer(&p.Spec.MaxExpirationSeconds, 86400) },
		Validate:             validatePodRequest,
		ValidateUpdate:       func(p, old *certificatesv1.PodCertificateRequest) field.ErrorList { return samePodRequest(p, old) },
		CopyStatus:           func(dst, src *certificatesv1.PodCertificateRequest) { dst.Status = *src.Status.DeepCopy() },
		ValidateStatusUpdate: validatePodRequestStatus,
		Fields: func(p *certificatesv1.PodCertificateRequest) fields.Set {
			return fields.Set{"spec.signerName": p.Spec.SignerName, "spec.podName": p.Spec.PodName, "spec.nodeName": string(p.Spec.NodeName)}
		},
		Row: func(p *certificatesv1.PodCertificateRequest) []any {
			state := "Pending"
			for _, c := range p.Status.Conditions {
				if c.Status == metav1.ConditionStatus(corev1.ConditionTrue) {
					state = c.Type
				}
			}
			return []any{p.Name, p.Spec.PodName, p.Spec.ServiceAccountName, string(p.Spec.NodeName), p.Spec.SignerName, state, rules.Created(p)}
		},
	}.Erase()
}
