package core

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestHowLongAPodCertificateMayLast(t *testing.T) {
	for name, tc := range map[string]struct {
		signer  string
		seconds int32
		want    string
	}{
		"an hour":            {"example.com/x", 3600, ""},
		"91 days":            {"example.com/x", 7862400, ""},
		"too short":          {"example.com/x", 3599, "if provided, maxExpirationSeconds must be >= 3600"},
		"too long":           {"example.com/x", 7862401, "if provided, maxExpirationSeconds must be <= 7862400"},
		"of Kubernetes: day": {"kubernetes.io/x", 86401, "if provided, maxExpirationSeconds must be <= 86400"},
	} {
		t.Run(name, func(t *testing.T) {
			errs := validatePodCertificate(&corev1.PodCertificateProjection{SignerName: tc.signer, KeyType: "ED25519", KeyPath: "key", MaxExpirationSeconds: &tc.seconds}, field.NewPath("c"))
			text := ""
			if err := errs.ToAggregate(); err != nil {
				text = err.Error()
			}
			if tc.want == "" && text != "" || !strings.Contains(text, tc.want) {
				t.Errorf("got %q", text)
			}
		})
	}
}
