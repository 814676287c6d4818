package volume

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// trustBundle returns the roots that a projection selects, each once.
func (v *Volumes) trustBundle(ctx context.Context, s *corev1.ClusterTrustBundleProjection) ([]byte, error) {
	optional := s.Optional != nil && *s.Optional
	switch {
	case s.Name != nil:
		b, err := v.cfg.Sources.TrustBundle(ctx, *s.Name)
		if optional && apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("get ClusterTrustBundle %s: %w", *s.Name, err)
		}
		return anchors([]*certificatesv1.ClusterTrustBundle{b}), nil
	case s.SignerName != nil:
		selector, err := metav1.LabelSelectorAsSelector(s.LabelSelector) // nil selects nothing
		if err != nil {
			return nil, fmt.Errorf("read the label selector: %w", err)
		}
		list, err := v.cfg.Sources.TrustBundles(ctx, *s.SignerName, selector)
		if err != nil {
			return nil, fmt.Errorf("list ClusterTrustBundles of %s: %w", *s.SignerName, err)
		}
		if len(list) == 0 && !optional {
			return nil, errors.New("combination of signerName and labelSelector matched zero ClusterTrustBundles")
		}
		return anchors(list), nil
	}
	return nil, errors.New("ClusterTrustBundle projection requires either name or signerName to be set")
}

// anchors joins the certificates of bundles in an order that only they decide, so
// that the file does not change when nothing has.
func anchors(list []*certificatesv1.ClusterTrustBundle) []byte {
	var blocks [][]byte
	for _, b := range list {
		rest := []byte(b.Spec.TrustBundle)
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type == "CERTIFICATE" {
				blocks = append(blocks, block.Bytes)
			}
		}
	}
	slices.SortFunc(blocks, bytes.Compare)
	blocks = slices.CompactFunc(blocks, bytes.Equal)
	var out bytes.Buffer
	for _, b := range blocks {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: b}) // a Buffer takes everything
	}
	return out.Bytes()
}
