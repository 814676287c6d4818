package customresource

import (
	"bytes"
	"context"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/proa-dev/proa/internal/apiserver/admission/callout"
)

// Callout calls conversion webhooks over HTTPS.
type Callout struct{ Client *callout.Client }

// Call implements Webhooks.
func (c Callout) Call(ctx context.Context, to *apiextensionsv1.WebhookClientConfig, body []byte) ([]byte, error) {
	t := callout.Target{}
	if len(bytes.TrimSpace(to.CABundle)) > 0 {
		t.CABundle = to.CABundle
	}
	if to.URL != nil {
		t.URL = *to.URL
	}
	if s := to.Service; s != nil {
		t.Namespace, t.Service = s.Namespace, s.Name
		if s.Path != nil {
			t.Path = *s.Path
		}
		if s.Port != nil {
			t.Port = *s.Port
		}
	}
	return c.Client.Post(ctx, t, body)
}
