package aggregator

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/openapiconv"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// described is how a server describes its group and version in OpenAPI v3.
type described struct {
	hash string
	path string // on the server; empty: it only speaks v2
	at   time.Time
}

// describeInterval is how often a server that answers is asked for its description.
const describeInterval = time.Minute

// describe asks the server for its index of OpenAPI v3 documents when that has
// not been done for a while, and reports whether anything changed.
func (s *service) describe(ctx context.Context) (changed bool) {
	old := s.described.Load()
	if old != nil && time.Since(old.at) < describeInterval {
		return false
	}
	now := &described{at: time.Now()}
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	status, _, body, err := s.get(ctx, "/openapi/v3", "application/json", maxAnswer)
	switch {
	case err != nil: // asked again with the next check
	case status == http.StatusOK:
		if json.Unmarshal(body, &index) != nil {
			break
		}
		if at := index.Paths["apis/"+s.gv.String()].URL; at != "" {
			now.path = at
			if u, err := url.Parse(at); err == nil {
				now.hash = u.Query().Get("hash")
			}
			if now.hash == "" {
				now.hash = hash([]byte(at))
			}
		}
	default:
		if doc, err := s.V2(ctx); err == nil {
			now.hash = hash(doc)
		}
	}
	s.described.Store(now)
	return old == nil && now.hash != "" || old != nil && old.hash != now.hash
}

func hash(b []byte) string {
	sum := sha512.Sum512(b)
	return hex.EncodeToString(sum[:])
}

// Hash changes with the description; empty: there is none.
func (s *service) Hash() string {
	if d := s.described.Load(); d != nil && s.available.Load() {
		return d.hash
	}
	return ""
}

// V3 answers with the server's document of the group and version.
func (s *service) V3(w http.ResponseWriter, r *http.Request) {
	d := s.described.Load()
	if d == nil || !s.available.Load() {
		http.Error(w, "service unavailable", http.StatusServiceUnavailable)
		return
	}
	path, accept := d.path, r.Header.Get("Accept")
	if path == "" {
		s.converted(w, r)
		return
	}
	if accept == "" {
		accept = "application/json"
	}
	status, kind, body, err := s.get(r.Context(), path, accept, maxAnswer)
	if err != nil {
		http.Error(w, "error trying to reach service: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("ETag", `"`+d.hash+`"`)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// converted answers with v2's document as one of v3.
func (s *service) converted(w http.ResponseWriter, r *http.Request) {
	doc, err := s.V2(r.Context())
	var v2 spec.Swagger
	if err == nil {
		err = json.Unmarshal(doc, &v2)
	}
	var b []byte
	if err == nil {
		b, err = json.Marshal(openapiconv.ConvertV2ToV3(&v2))
	}
	if err != nil {
		http.Error(w, "error trying to reach service: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

// V2 returns the server's document as JSON, of all its groups.
func (s *service) V2(ctx context.Context) ([]byte, error) {
	status, _, body, err := s.get(ctx, "/openapi/v2", "application/json", maxAnswer)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("bad status from %s/openapi/v2: %d", s.base.String(), status)
	}
	return body, err
}

// resourcesOf turns a plain list of resources into discovery's aggregated form.
func resourcesOf(list *metav1.APIResourceList, gv schema.GroupVersion) []apidiscoveryv2.APIResourceDiscovery {
	var out []apidiscoveryv2.APIResourceDiscovery
	at := map[string]int{}
	kindOf := func(r *metav1.APIResource) *metav1.GroupVersionKind {
		k := &metav1.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
		if k.Group == "" && k.Version == "" {
			k.Group, k.Version = gv.Group, gv.Version
		} else if k.Version == "" {
			k.Version = gv.Version
		}
		return k
	}
	scope := func(r *metav1.APIResource) apidiscoveryv2.ResourceScope {
		if r.Namespaced {
			return apidiscoveryv2.ScopeNamespace
		}
		return apidiscoveryv2.ScopeCluster
	}
	add := func(r apidiscoveryv2.APIResourceDiscovery) int {
		at[r.Resource] = len(out)
		out = append(out, r)
		return len(out) - 1
	}
	var subs []*metav1.APIResource
	for i := range list.APIResources {
		r := &list.APIResources[i]
		if _, _, sub := strings.Cut(r.Name, "/"); sub {
			subs = append(subs, r)
			continue
		}
		add(apidiscoveryv2.APIResourceDiscovery{Resource: r.Name, Scope: scope(r), SingularResource: r.SingularName, Verbs: r.Verbs,
			ShortNames: r.ShortNames, Categories: r.Categories, ResponseKind: kindOf(r)})
	}
	for _, r := range subs {
		parent, name, _ := strings.Cut(r.Name, "/")
		i, ok := at[parent]
		if !ok { // a resource that has subresources only
			i = add(apidiscoveryv2.APIResourceDiscovery{Resource: parent, Scope: scope(r)})
		}
		out[i].Subresources = append(out[i].Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: name, ResponseKind: kindOf(r), Verbs: r.Verbs})
	}
	return out
}
