package discovery

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"sort"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
)

// documents are the answers, encoded once for each state of the catalog.
type documents struct {
	apis        document            // plain
	apiV2       document            // aggregated: the core group
	apisV2      document            // aggregated: all others
	groups      map[string]document // /apis/{group}
	versions    map[string]document // group/version, or v1
	coreVersion []string
}

type document struct {
	body []byte
	etag string
	// object is body's content, for the few who want protobuf.
	object protoObject
}

type protoObject interface {
	Marshal() ([]byte, error)
	GroupVersionKind() schema.GroupVersionKind
}

func encode(v protoObject) document {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of strings
	}
	sum := sha512.Sum512(b)
	return document{body: append(b, '\n'), etag: `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`, object: v}
}

// proto is the document in Kubernetes' protobuf envelope.
func (d document) proto() ([]byte, error) {
	raw, err := d.object.Marshal()
	if err != nil {
		return nil, err
	}
	version, kind := d.object.GroupVersionKind().ToAPIVersionAndKind()
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: version, Kind: kind}, Raw: raw}
	b, err := u.Marshal()
	if err != nil {
		return nil, err
	}
	return append([]byte("k8s\x00"), b...), nil
}

func (s *snapshot) documents() *documents {
	s.once.Do(func() { s.docs = makeDocuments(s.groups()) })
	return s.docs
}

func makeDocuments(groups []group) *documents {
	d := &documents{groups: map[string]document{}, versions: map[string]document{}}
	plain := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	v2Type := metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"}
	core := apidiscoveryv2.APIGroupDiscoveryList{TypeMeta: v2Type, Items: []apidiscoveryv2.APIGroupDiscovery{}}
	others := apidiscoveryv2.APIGroupDiscoveryList{TypeMeta: v2Type, Items: []apidiscoveryv2.APIGroupDiscovery{}}
	for _, g := range groups {
		one := metav1.APIGroup{Name: g.name}
		v2 := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
		for _, v := range g.versions {
			gv := schema.GroupVersion{Group: g.name, Version: v.version}
			one.Versions = append(one.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: v.version})
			list := apidiscoveryv2.APIVersionDiscovery{Version: v.version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
			if v.external != nil {
				list.Resources = v.external.Resources
				if v.external.Stale {
					list.Freshness = apidiscoveryv2.DiscoveryFreshnessStale
				}
			} else {
				list.Resources = v2Resources(v.resources)
				d.versions[gv.String()] = encode(&metav1.APIResourceList{
					TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
					GroupVersion: gv.String(), APIResources: plainResources(v.resources),
				})
			}
			v2.Versions = append(v2.Versions, list)
		}
		one.PreferredVersion = one.Versions[0]
		if g.name == "" {
			core.Items = append(core.Items, v2)
			for _, v := range g.versions {
				d.coreVersion = append(d.coreVersion, v.version)
			}
			continue
		}
		plain.Groups = append(plain.Groups, one)
		others.Items = append(others.Items, v2)
		one.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
		d.groups[g.name] = encode(&one)
	}
	d.apis, d.apiV2, d.apisV2 = encode(&plain), encode(&core), encode(&others)
	return d
}

var allVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

func verbsOf(r *api.Resource) []string {
	if len(r.Verbs) == 0 {
		return allVerbs
	}
	v := slices.Clone(r.Verbs)
	sort.Strings(v)
	return v
}

// Subresource describes a subresource: its verbs and, where it differs from the
// parent's, its kind.
type Subresource struct {
	Name  string
	Kind  schema.GroupVersionKind
	Verbs []string
}

var (
	readWrite = []string{"get", "patch", "update"}
	connect   = []string{"create", "get"}
	proxy     = []string{"create", "delete", "get", "patch", "update"}
)

// SubresourcesOf returns the subresources of a resource, sorted by name.
func SubresourcesOf(r *api.Resource) []Subresource {
	var list []Subresource
	add := func(name string, kind schema.GroupVersionKind, verbs []string) {
		list = append(list, Subresource{Name: name, Kind: kind, Verbs: verbs})
	}
	if r.CopyStatus != nil {
		add("status", r.GVK, readWrite)
	}
	if r.Scale != nil {
		add("scale", schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}, readWrite)
	}
	core := func(kind string) schema.GroupVersionKind {
		return schema.GroupVersionKind{Version: "v1", Kind: kind}
	}
	option := map[string]string{"pods": "Pod", "services": "Service", "nodes": "Node"}[r.GVR.Resource]
	for _, name := range r.Subresources {
		switch name {
		case "status", "scale":
		case "log":
			add(name, r.GVK, []string{"get"})
		case "exec":
			add(name, core("PodExecOptions"), connect)
		case "attach":
			add(name, core("PodAttachOptions"), connect)
		case "portforward":
			add(name, core("PodPortForwardOptions"), connect)
		case "proxy":
			add(name, core(option+"ProxyOptions"), proxy)
		case "binding":
			add(name, core("Binding"), []string{"create"})
		case "eviction":
			add(name, schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"}, []string{"create"})
		case "token":
			add(name, schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}, []string{"create"})
		case "finalize":
			add(name, r.GVK, []string{"update"})
		default:
			add(name, r.GVK, readWrite)
		}
	}
	slices.SortFunc(list, func(a, b Subresource) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func plainResources(resources []*api.Resource) []metav1.APIResource {
	list := make([]metav1.APIResource, 0, len(resources)*2)
	for _, r := range resources {
		one := metav1.APIResource{
			Name: r.GVR.Resource, SingularName: r.Singular, Namespaced: r.Namespaced, Kind: r.GVK.Kind,
			Verbs: verbsOf(r), ShortNames: r.ShortNames, Categories: r.Categories,
		}
		if len(r.Verbs) == 0 {
			one.StorageVersionHash = storageHash(r)
		}
		list = append(list, one)
		for _, s := range SubresourcesOf(r) {
			sub := metav1.APIResource{Name: r.GVR.Resource + "/" + s.Name, Namespaced: r.Namespaced, Kind: s.Kind.Kind, Verbs: s.Verbs}
			if gv := s.Kind.GroupVersion(); gv != r.GVK.GroupVersion() {
				sub.Group, sub.Version = gv.Group, gv.Version
			}
			list = append(list, sub)
		}
	}
	return list
}

// storageHash changes when objects would be stored in another version.
func storageHash(r *api.Resource) string {
	gvk := r.GVK
	if !r.StoredAs.Empty() {
		gvk.Group, gvk.Version = r.StoredAs.Group, r.StoredAs.Version
	}
	sum := sha256.Sum256([]byte(gvk.Group + "/" + gvk.Version + "/" + gvk.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

func v2Resources(resources []*api.Resource) []apidiscoveryv2.APIResourceDiscovery {
	list := make([]apidiscoveryv2.APIResourceDiscovery, 0, len(resources))
	for _, r := range resources {
		scope := apidiscoveryv2.ScopeCluster
		if r.Namespaced {
			scope = apidiscoveryv2.ScopeNamespace
		}
		one := apidiscoveryv2.APIResourceDiscovery{
			Resource: r.GVR.Resource, Scope: scope, SingularResource: r.Singular, Verbs: verbsOf(r),
			ShortNames: r.ShortNames, Categories: r.Categories, ResponseKind: responseKind(r.GVK, r.GVK),
		}
		for _, s := range SubresourcesOf(r) {
			one.Subresources = append(one.Subresources, apidiscoveryv2.APISubresourceDiscovery{
				Subresource: s.Name, ResponseKind: responseKind(s.Kind, r.GVK), Verbs: s.Verbs,
			})
		}
		list = append(list, one)
	}
	return list
}

// responseKind leaves group and version empty where they are the list's own.
func responseKind(k, parent schema.GroupVersionKind) *metav1.GroupVersionKind {
	out := &metav1.GroupVersionKind{Kind: k.Kind}
	if k.GroupVersion() != parent.GroupVersion() {
		out.Group, out.Version = k.Group, k.Version
	}
	return out
}
