package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/client"
)

// Resources asks for the discovery documents of all groups at once (KEP-3352).
func (c *Client) Resources(ctx context.Context) ([]client.ResourceInfo, error) {
	const as = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	var out []client.ResourceInfo
	for _, root := range []string{"/api", "/apis"} {
		a, err := c.send(ctx, "GET", root, nil, nil, "", as)
		if err != nil {
			return nil, err
		}
		var groups apidiscoveryv2.APIGroupDiscoveryList
		if err := json.Unmarshal(a.body, &groups); err != nil {
			return nil, fmt.Errorf("decode the discovery of %s: %w", root, err)
		}
		if groups.Kind != "APIGroupDiscoveryList" {
			return nil, fmt.Errorf("discover %s: the server answers with a %q: it is older than Kubernetes 1.30", root, groups.Kind)
		}
		for _, g := range groups.Items {
			known := map[string]bool{} // versions are sorted: the preferred one comes first
			for _, v := range g.Versions {
				for _, r := range v.Resources {
					if known[r.Resource] || !slices.Contains(r.Verbs, "get") || r.ResponseKind == nil {
						continue // a review, which cannot be read
					}
					known[r.Resource] = true

					out = append(out, client.ResourceInfo{GVR: schema.GroupVersionResource{Group: g.Name, Version: v.Version, Resource: r.Resource},
						Kind: r.ResponseKind.Kind, Namespaced: r.Scope == apidiscoveryv2.ScopeNamespace, Verbs: r.Verbs})
				}
			}
		}
	}
	return out, nil
}
