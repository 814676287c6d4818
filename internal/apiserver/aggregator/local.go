package aggregator

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// managed marks an APIService that this server keeps: for good, or as long as
// custom resources are defined in the group and version.
const (
	managed       = "kube-aggregator.kubernetes.io/automanaged"
	managedAtOnce = "onstart"
	managedAlways = "true"
)

// groupPriority is where Kubernetes lists its groups; others come after them.
var groupPriority = map[string]int32{
	"": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600, "autoscaling": 17500,
	"batch": 17400, "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100, "rbac.authorization.k8s.io": 17000,
	"storage.k8s.io": 16800, "apiextensions.k8s.io": 16700, "admissionregistration.k8s.io": 16700, "scheduling.k8s.io": 16600,
	"coordination.k8s.io": 16500, "node.k8s.io": 16300, "discovery.k8s.io": 16200, "flowcontrol.apiserver.k8s.io": 16100,
	"resource.k8s.io": 15900, "storagemigration.k8s.io": 15800, "internal.apiserver.k8s.io": 16000,
}

const (
	otherGroups    = 15000 // built in, of no priority of its own
	customGroups   = 1000
	customVersions = 100
)

// keepLocal keeps an APIService for each group and version that this server
// answers itself, until ctx ends.
func (a *Aggregator) keepLocal(ctx context.Context) {
	who := &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	ctx = rest.WithFieldManager(rest.WithUser(ctx, who), "kube-apiserver")
	changed, stop := a.cfg.Catalog.Changes()
	defer stop()
	w, err := a.watchManaged()
	if err != nil {
		a.log.Error("keep APIServices", "err", err)
		return
	}
	defer func() { w.Stop() }()
	for first := true; ; first = false {
		var retry <-chan time.Time
		if err := a.syncLocal(ctx, first); err != nil && ctx.Err() == nil {
			a.log.Warn("keep APIServices", "err", err)
			retry = time.After(time.Second)
		}
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				again = true
			case <-retry:
				again = true
			case <-w.Wake():
				var buf []*cache.Event
				if buf, err = w.Poll(nil); err != nil {
					w.Stop()
					if w, err = a.watchManaged(); err != nil {
						a.log.Error("keep APIServices", "err", err)
						return
					}
					again = true
				}
				for _, e := range buf { // somebody changed or deleted one of a custom resource's
					again = again || e.Entry.Object().GetLabels()[managed] == managedAlways || e.Prev != nil && e.Prev.Object().GetLabels()[managed] == managedAlways
				}
			}
		}
	}
}

func (a *Aggregator) watchManaged() (*cache.Watcher, error) {
	w, _, _, err := a.cache.Watch(cache.WatchOptions{})
	return w, err
}

// syncLocal makes the APIServices that are kept what the catalog says. Those of
// built-in groups are made at the start only: who deletes one wants it so.
func (a *Aggregator) syncLocal(ctx context.Context, first bool) error {
	custom := map[schema.GroupVersion]bool{}
	for _, r := range a.cfg.Catalog.Resources() {
		gv := r.GVR.GroupVersion()
		_, is := r.New().(*unstructured.Unstructured)
		if was, seen := custom[gv]; !seen || was && !is {
			custom[gv] = is
		}
	}
	for _, gv := range slices.SortedFunc(maps.Keys(custom), func(x, y schema.GroupVersion) int { return cmp.Compare(x.String(), y.String()) }) {
		if !custom[gv] && !first {
			continue
		}
		if err := a.keep(ctx, gv, custom[gv]); err != nil {
			return err
		}
	}
	snapshot, _ := a.cache.Read()
	var gone []string
	snapshot.Scan(cache.Scope{}, "", func(e *cache.Entry) bool {
		o := e.Object().(*apiregistrationv1.APIService)
		gv := schema.GroupVersion{Group: o.Spec.Group, Version: o.Spec.Version}
		if _, served := custom[gv]; !served && (o.Labels[managed] == managedAlways || first && o.Labels[managed] == managedAtOnce) {
			gone = append(gone, o.Name)
		}
		return true
	})
	for _, name := range gone {
		if _, _, err := a.store.Delete(ctx, "", name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// keep makes an APIService for a group and version of this server's own, or
// mends it where it is one of those that are kept.
func (a *Aggregator) keep(ctx context.Context, gv schema.GroupVersion, custom bool) error {
	want := &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group, Labels: map[string]string{managed: managedAtOnce}},
		Spec:       apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: otherGroups, VersionPriority: versionPriority(gv.Version)},
	}
	if p, ok := groupPriority[gv.Group]; ok {
		want.Spec.GroupPriorityMinimum = p
	}
	if custom {
		want.Labels[managed] = managedAlways
		want.Spec.GroupPriorityMinimum, want.Spec.VersionPriority = customGroups, customVersions
	}
	e, ok := a.cache.Get(a.cache.Key("", want.Name))
	if !ok {
		_, err := a.store.Create(ctx, "", want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	have := e.Object().(*apiregistrationv1.APIService)
	if have.Labels[managed] == "" || have.Labels[managed] == want.Labels[managed] && equality.Semantic.DeepEqual(have.Spec, want.Spec) {
		return nil // somebody else's, or right
	}
	_, _, err := a.store.Update(ctx, "", want.Name, "", func(_ context.Context, old api.Object) (api.Object, error) {
		o := old.(*apiregistrationv1.APIService)
		if o.Labels[managed] != "" {
			o.Labels[managed], o.Spec = want.Labels[managed], want.Spec
		}
		return o, nil
	}, rest.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// versionPriority puts stable versions before betas, and those before alphas; of
// stable ones the higher comes first by its name.
func versionPriority(version string) int32 {
	switch {
	case strings.Contains(version, "alpha"):
		return 1
	case strings.Contains(version, "beta"):
		return 9
	}
	return 15
}
