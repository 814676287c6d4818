package rest

import (
	"context"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest/managed"
)

// owners says what a write does to metadata.managedFields.
type owners uint8

const (
	track  owners = iota // what the write changes becomes the writer's
	keep                 // nothing: the write is the server's own (a binding, an eviction)
	merged               // the object comes with its owners, as an apply has computed them
)

// ownership is what a storage knows of how the fields of its kind are owned.
type ownership struct {
	once sync.Once
	kind *managed.Kind // nil: a custom resource, or no schema
	err  error

	mu     sync.Mutex
	fields map[string]*managedfields.FieldManager // by subresource, made at the first apply
}

// custom reports whether the objects are custom resources, which have no Go type.
func (s *storage) custom() bool {
	_, custom := s.res.New().(*unstructured.Unstructured)
	return custom
}

func (s *storage) kind() (*managed.Kind, error) {
	o := &s.ownership
	o.once.Do(func() { o.kind, o.err = s.reg.kinds.Of(s.res.New()) })
	return o.kind, o.err
}

// track records that the context's field manager, or the one that the options
// name, has made obj of old (nil: obj is new). obj is as the client wants it,
// defaulted, before the server and admission have their say: what they set is
// nobody's. When that fails, the owners stay what they were.
func (s *storage) track(ctx context.Context, old, obj api.Object, option, subresource string) {
	var stored api.Object
	if stored = old; stored == nil {
		stored = s.empty()
	}
	was := stored.GetManagedFields()
	start := managed.Start(obj.GetManagedFields(), was, subresource == "")
	if len(start) == 0 && old != nil {
		// Owners that were taken away come back with the first apply.
		obj.SetManagedFields(nil)
		return
	}
	if s.custom() {
		s.trackCustom(ctx, stored, obj, option, subresource)
		return
	}
	kind, err := s.kind()
	if err != nil || kind == nil {
		s.untracked(obj, was, err)
		return
	}
	reset := s.reset(subresource)
	changed, err := kind.Compare(stored, obj, reset)
	if err != nil {
		s.untracked(obj, was, err)
		return
	}
	defer changed.Free()
	u := managed.Update{
		Manager: fieldManager(ctx, option), APIVersion: s.res.GVK.GroupVersion().String(), Subresource: subresource, Now: s.now(),
		Compare: func(version string) (*managed.Comparison, error) { return s.compareAs(version, stored, obj, reset) },
	}
	entries, err := u.Apply(start, changed)
	if err != nil {
		// What is stored did not come from here: read it with Kubernetes' own code.
		if start, err = managed.Clean(start); err == nil {
			entries, err = u.Apply(start, changed)
		}
		if err != nil {
			entries, err = u.Apply(nil, changed)
		}
	}
	if err != nil {
		s.untracked(obj, was, err)
		return
	}
	obj.SetManagedFields(entries)
}

// untracked leaves the owners as they were.
func (s *storage) untracked(obj api.Object, was []metav1.ManagedFieldsEntry, err error) {
	if err != nil {
		s.reg.log.Warn("the owners of fields are not tracked", "kind", s.res.GVK.Kind, "namespace", obj.GetNamespace(), "name", obj.GetName(), "error", err)
	}
	obj.SetManagedFields(was)
}

// trackCustom is track for what has no Go type.
func (s *storage) trackCustom(ctx context.Context, stored, obj api.Object, option, subresource string) {
	was := stored.GetManagedFields()
	fields, err := s.fieldManager(subresource)
	if err != nil {
		s.untracked(obj, was, err)
		return
	}
	live := stored.DeepCopyObject().(api.Object)
	live.GetObjectKind().SetGroupVersionKind(s.res.GVK)
	obj.GetObjectKind().SetGroupVersionKind(s.res.GVK)
	_, err = fields.Update(live, obj, fieldManager(ctx, option))
	cache.ClearKind(obj)
	if err != nil {
		s.untracked(obj, was, err)
		return
	}
	entries := obj.GetManagedFields()
	managed.SetTimes(entries, was, s.now())
	obj.SetManagedFields(entries)
}

// compareAs compares as objects of another version of the same resource see it;
// nil when there is no such version.
func (s *storage) compareAs(version string, old, obj api.Object, reset managed.Reset) (*managed.Comparison, error) {
	other := s.sibling(version)
	if other == nil {
		return nil, nil
	}
	kind, err := other.kind()
	if err != nil || kind == nil {
		return nil, err
	}
	a, err := s.convert(old, other)
	if err != nil {
		return nil, err
	}
	b, err := s.convert(obj, other)
	if err != nil {
		return nil, err
	}
	return kind.Compare(a, b, reset)
}

// siblings are the storages of the same objects, one for each version.
func (s *storage) siblings() (out []*storage) {
	s.reg.mu.RLock()
	defer s.reg.mu.RUnlock()
	for _, other := range s.reg.storages {
		if other.cache == s.cache {
			out = append(out, other)
		}
	}
	return out
}

func (s *storage) sibling(version string) *storage {
	for _, other := range s.siblings() {
		if other.res.GVK.GroupVersion().String() == version {
			return other
		}
	}
	return nil
}

// convert returns a copy of obj as another version has it.
func (s *storage) convert(obj api.Object, to *storage) (api.Object, error) {
	stored, _, err := s.toStored(obj)
	if err != nil || to.view == nil {
		return stored, err
	}
	return to.fromStored(stored)
}

// reset returns what a write of the resource or of a subresource cannot change.
func (s *storage) reset(subresource string) managed.Reset {
	csr := s.gr == csrGR
	switch subresource {
	case "":
		if csr {
			return resetAll
		}
		if s.res.CopyStatus != nil {
			return resetStatus
		}
	case "status":
		switch {
		case csr:
			return resetConditions
		case s.gr == podsGR:
			return resetPod
		case s.gr == deploymentsGR:
			return resetLabels
		case slices.Contains(bareStatus, s.gr), s.custom():
			return resetMeta
		}
		return resetSpec
	case "approval":
		return resetCertificate
	case "finalize":
		return resetStatus
	}
	return nil
}

var (
	resetAll         = managed.Reset{{"spec"}, {"status"}}
	resetCertificate = managed.Reset{{"spec"}, {"status", "certificate"}}
	resetConditions  = managed.Reset{{"spec"}, {"status", "conditions"}}
	resetLabels      = managed.Reset{{"spec"}, {"metadata", "labels"}}
	resetMeta        = managed.Reset{{"spec"}, {"metadata"}}
	resetPod         = managed.Reset{{"spec"}, {"metadata", "deletionTimestamp"}, {"metadata", "ownerReferences"}}
	resetSpec        = managed.Reset{{"spec"}}
	resetStatus      = managed.Reset{{"status"}}
)

var (
	csrGR         = schema.GroupResource{Group: "certificates.k8s.io", Resource: "certificatesigningrequests"}
	deploymentsGR = schema.GroupResource{Group: "apps", Resource: "deployments"}
)

// bareStatus are the resources whose /status has no say about the metadata.
var bareStatus = []schema.GroupResource{
	{Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies"},
	{Group: "apiregistration.k8s.io", Resource: "apiservices"},
	{Group: "certificates.k8s.io", Resource: "podcertificaterequests"},
	{Group: "flowcontrol.apiserver.k8s.io", Resource: "flowschemas"},
	{Group: "flowcontrol.apiserver.k8s.io", Resource: "prioritylevelconfigurations"},
	{Group: "networking.k8s.io", Resource: "servicecidrs"},
	{Group: "resource.k8s.io", Resource: "devicetaintrules"},
	{Group: "resource.k8s.io", Resource: "resourceclaims"},
	{Group: "storage.k8s.io", Resource: "volumeattachments"},
	{Group: "storagemigration.k8s.io", Resource: "storageversionmigrations"},
}

// newOf returns an empty object of a version of the resource, nil of any other kind.
func (s *storage) newOf(gvk schema.GroupVersionKind) runtime.Object {
	if gvk == s.res.GVK {
		return s.res.New()
	}
	if other := s.sibling(gvk.GroupVersion().String()); other != nil && other.res.GVK == gvk {
		return other.res.New()
	}
	return nil
}
