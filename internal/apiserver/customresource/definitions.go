// Package customresource serves what CustomResourceDefinitions define. Definitions
// follows them: it accepts their names, says so in their status, has their
// resources served (registry, catalog), and deletes their objects with them. What
// a version's schema means (pruning, defaults, validation, rules, columns) is in
// version.go and validate.go, on top of Kubernetes' own library for schemas.
//
// It stores nothing itself and speaks no HTTP: that is what packages rest and
// endpoint do, with the api.Resource that is made here.
package customresource

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var crdGVR = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")

// Config is what Definitions are made of. Registry and Catalog are needed.
type Config struct {
	Registry *rest.Registry
	Catalog  *discovery.Catalog
	// Webhooks calls conversion webhooks; nil: they cannot be called.
	Webhooks Webhooks
	Logger   *slog.Logger
}

// Definitions serves custom resources.
type Definitions struct {
	cfg   Config
	log   *slog.Logger
	cache *cache.Cache
	store rest.Storage

	mu     sync.RWMutex
	served map[string]*served // by the definition's name

	ending map[string]context.CancelFunc // objects are being deleted; the loop's
	ended  chan string
	wg     sync.WaitGroup
}

// served is a definition that is served.
type served struct {
	uid   string
	spec  *apiextensionsv1.CustomResourceDefinitionSpec
	names apiextensionsv1.CustomResourceDefinitionNames
	gr    schema.GroupResource
	gvrs  []schema.GroupVersionResource
	kind  *kind
	// unlisted are not in discovery yet.
	unlisted []*api.Resource
}

// New returns Definitions over a started registry. Load and Run serve them.
func New(cfg Config) (*Definitions, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Definitions{cfg: cfg, log: cfg.Logger, served: map[string]*served{}, ending: map[string]context.CancelFunc{}, ended: make(chan string)}
	var ok bool
	if d.cache, _, ok = cfg.Registry.Cache(crdGVR); ok {
		d.store, ok = cfg.Registry.Storage(crdGVR)
	}
	if !ok {
		return nil, fmt.Errorf("serve custom resources: %s are not served", crdGVR.Resource)
	}
	return d, nil
}

// Load serves what is defined already. Call it before requests come.
func (d *Definitions) Load(ctx context.Context) error {
	for _, crd := range d.all() {
		if apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.NamesAccepted) || apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			if err := d.serve(ctx, crd); err != nil {
				return err
			}
			d.list(crd.Name)
		}
	}
	return nil
}

// Run follows the definitions until ctx ends.
func (d *Definitions) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer d.wg.Wait()
	defer cancel()
	for {
		err := d.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		d.log.Warn("the watch of custom resource definitions begins again", "err", err)
	}
}

// follow works on definitions as they change, until the watch or ctx ends.
func (d *Definitions) follow(ctx context.Context) error {
	w, snapshot, _, err := d.cache.Watch(cache.WatchOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	dirty := map[string]bool{}
	for name := range d.served {
		dirty[name] = true
	}
	snapshot.Scan(cache.Scope{}, "", func(e *cache.Entry) bool {
		dirty[e.Object().GetName()] = true
		return true
	})
	d.work(ctx, dirty)
	var buf []*cache.Event
	for {
		if buf, err = w.Poll(buf[:0]); err != nil {
			return err
		}
		for _, e := range buf {
			dirty[e.Entry.Object().GetName()] = true
		}
		if len(dirty) > 0 {
			d.work(ctx, dirty)
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Wake():
		case name := <-d.ended:
			d.ending[name]()
			delete(d.ending, name)
			dirty[name] = true
		}
	}
}

// work brings all dirty definitions up to date. Those whose names another one
// gave up become dirty, too.
func (d *Definitions) work(ctx context.Context, dirty map[string]bool) {
	for len(dirty) > 0 && ctx.Err() == nil {
		// Who came first has the first claim to names.
		names := slices.SortedFunc(maps.Keys(dirty), d.older)
		clear(dirty)
		for _, name := range names {
			freed, err := d.sync(ctx, name)
			if err != nil {
				d.log.Error("serve a custom resource definition", "name", name, "err", err)
			}
			for _, other := range freed {
				dirty[other] = true
			}
		}
	}
}

func (d *Definitions) older(a, b string) int {
	x, y := d.get(a), d.get(b)
	if x == nil || y == nil {
		return compare(a, b)
	}
	if c := x.CreationTimestamp.Compare(y.CreationTimestamp.Time); c != 0 {
		return c
	}
	return compare(a, b)
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (d *Definitions) get(name string) *apiextensionsv1.CustomResourceDefinition {
	e, ok := d.cache.Get(d.cache.Key("", name))
	if !ok {
		return nil
	}
	return e.Object().(*apiextensionsv1.CustomResourceDefinition)
}

func (d *Definitions) all() (out []*apiextensionsv1.CustomResourceDefinition) {
	snapshot, _ := d.cache.Read()
	snapshot.Scan(cache.Scope{}, "", func(e *cache.Entry) bool {
		out = append(out, e.Object().(*apiextensionsv1.CustomResourceDefinition))
		return true
	})
	return out
}

// conflicted returns the definitions of a group that wait for names.
func (d *Definitions) conflicted(group, but string) (names []string) {
	for _, crd := range d.all() {
		if crd.Spec.Group == group && crd.Name != but && !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.NamesAccepted) {
			names = append(names, crd.Name)
		}
	}
	return names
}

// sync brings one definition up to date and returns those that its change concerns.
func (d *Definitions) sync(ctx context.Context, name string) (others []string, err error) {
	crd := d.get(name)
	if crd == nil {
		if s := d.unserve(name); s != nil {
			others = d.conflicted(s.gr.Group, name)
		}
		return others, nil
	}
	want := crd
	if next := status(crd, takenBy(d.all(), crd.Spec.Group, name)); next != nil {
		want = next
	}
	// Served first: who sees that it is established finds it.
	if apihelpers.IsCRDConditionTrue(want, apiextensionsv1.NamesAccepted) || apihelpers.IsCRDConditionTrue(want, apiextensionsv1.Established) {
		if err := d.serve(ctx, want); err != nil {
			return nil, err
		}
	} else {
		d.unserve(name)
	}
	written := true
	if want != crd {
		if written, err = d.write(ctx, want); err != nil {
			return nil, err
		}
		if !equality.Semantic.DeepEqual(crd.Status.AcceptedNames, want.Status.AcceptedNames) {
			others = d.conflicted(crd.Spec.Group, name)
		}
	}
	if written {
		d.list(name) // who finds it in discovery finds it established
	}
	if crd.DeletionTimestamp != nil && apihelpers.CRDHasFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer) && d.ending[name] == nil {
		ctx, cancel := context.WithCancel(ctx)
		d.ending[name] = cancel
		d.wg.Go(func() {
			d.finalize(ctx, name)
			select {
			case d.ended <- name:
			case <-ctx.Done():
			}
		})
	}
	return others, nil
}

// write writes a definition's status, unless it has changed meanwhile (false): then
// its watch tells, and it is looked at again.
func (d *Definitions) write(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) (bool, error) {
	_, _, err := d.store.Update(d.as(ctx), "", crd.Name, "status", func(context.Context, api.Object) (api.Object, error) {
		out := withStatus(crd) // of which the server takes the status and metadata
		crd.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
		return out, nil
	}, rest.UpdateOptions{UpdateOptions: metav1.UpdateOptions{}})
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return err == nil, nil
	}
	return false, fmt.Errorf("write the status of %s: %w", crd.Name, err)
}

// as says who writes.
func (d *Definitions) as(ctx context.Context) context.Context {
	who := &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	return rest.WithFieldManager(rest.WithUser(ctx, who), "kube-apiserver")
}

// serve has a definition's resources served as they are defined now.
func (d *Definitions) serve(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) error {
	names, closed := crd.Status.AcceptedNames, crd.DeletionTimestamp != nil
	d.mu.RLock()
	old := d.served[crd.Name]
	d.mu.RUnlock()
	if old != nil && old.uid == string(crd.UID) && equality.Semantic.DeepEqual(*old.spec, crd.Spec) && equality.Semantic.DeepEqual(old.names, names) {
		old.kind.closed.Store(closed)
		if want := &crd.Spec; old.spec != want {
			old.spec = want
			old.kind.rebase(crd)
		}
		return nil
	}
	c, k := custom(crd, names, d.cfg.Webhooks)
	k.closed.Store(closed)
	if err := d.cfg.Registry.SetCustom(ctx, c); err != nil {
		return err
	}
	s := &served{uid: string(crd.UID), spec: &crd.Spec, names: names, gr: c.Resource, kind: k}
	for _, r := range c.Versions {
		s.gvrs = append(s.gvrs, r.GVR)
	}
	var before []schema.GroupVersionResource
	if old != nil {
		before = old.gvrs
	}
	d.mu.Lock()
	d.served[crd.Name] = s
	d.mu.Unlock()
	if old == nil {
		s.unlisted = c.Versions
		d.cfg.Catalog.Announce(c.Versions)
		return nil
	}
	d.cfg.Catalog.Replace(before, c.Versions)
	return nil
}

// list has discovery show what serve has served.
func (d *Definitions) list(name string) {
	d.mu.Lock()
	s := d.served[name]
	var add []*api.Resource
	if s != nil {
		add, s.unlisted = s.unlisted, nil
	}
	d.mu.Unlock()
	if add != nil {
		d.cfg.Catalog.Replace(nil, add)
	}
}

// unserve ends the serving of a definition and returns what was served of it.
func (d *Definitions) unserve(name string) *served {
	d.mu.Lock()
	s := d.served[name]
	delete(d.served, name)
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	d.cfg.Catalog.Replace(s.gvrs, nil)
	d.cfg.Registry.RemoveCustom(s.gr)
	return s
}
