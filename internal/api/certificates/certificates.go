// Package certificates holds the rules of the API group of k8s.io/api/certificates/v1.
package certificates

import (
	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := certificatesv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Cluster[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](gv, "certificatesigningrequests", "csr"),
		rules.Cluster[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList](gv, "clustertrustbundles"),
		rules.Namespaced[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList](gv, "podcertificaterequests"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
