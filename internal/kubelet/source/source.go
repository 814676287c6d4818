// Package source watches the ConfigMaps, Secrets and ClusterTrustBundles that the
// pods of a node use, each object once, for as long as a pod holds it. A change
// wakes the pods that hold the object. Of ConfigMaps and Secrets it reads single
// objects only, which is all that a node may do.
package source

import (
	"context"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// Kind of an object.
type Kind int

const (
	ConfigMap Kind = iota
	Secret
	TrustBundle
)

func (k Kind) resource() schema.GroupVersionResource {
	switch k {
	case Secret:
		return client.Secrets.GVR
	case TrustBundle:
		return client.ClusterTrustBundles.GVR
	default:
		return client.ConfigMaps.GVR
	}
}

// Ref names an object; a TrustBundle without name stands for all of them.
type Ref struct {
	Kind            Kind
	Namespace, Name string
}

// Sources is shared by all pods of the node.
type Sources struct {
	c  client.Interface
	wg sync.WaitGroup

	mu      sync.Mutex
	objects map[Ref]*object
}

type object struct {
	informer client.Informer
	cancel   context.CancelFunc
	holders  map[types.UID]func()
}

func New(c client.Interface) *Sources { return &Sources{c: c, objects: map[Ref]*object{}} }

// Wait returns when all watches have ended (after every holder has let go, or
// the context they were held with has ended).
func (s *Sources) Wait() { s.wg.Wait() }

// Hold makes owner hold exactly refs; changed is called, from any goroutine and
// without blocking, after one of them has changed.
func (s *Sources) Hold(ctx context.Context, owner types.UID, refs []Ref, changed func()) {
	want := make(map[Ref]bool, len(refs))
	for _, r := range refs {
		want[r] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, o := range s.objects {
		if _, holds := o.holders[owner]; holds && !want[r] {
			s.drop(r, o, owner)
		}
	}
	for r := range want {
		o := s.objects[r]
		if o == nil {
			o = s.watch(ctx, r)
		}
		o.holders[owner] = changed
	}
}

// Release lets go of all that owner holds.
func (s *Sources) Release(owner types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, o := range s.objects {
		if _, holds := o.holders[owner]; holds {
			s.drop(r, o, owner)
		}
	}
}

func (s *Sources) drop(r Ref, o *object, owner types.UID) {
	delete(o.holders, owner)
	if len(o.holders) == 0 {
		o.cancel()
		delete(s.objects, r)
	}
}

func (s *Sources) watch(ctx context.Context, r Ref) *object {
	ctx, cancel := context.WithCancel(ctx)
	o := &object{
		informer: s.c.Informer(r.Kind.resource(), client.Scope{Namespace: r.Namespace, Name: r.Name}),
		cancel:   cancel,
		holders:  map[types.UID]func(){},
	}
	s.objects[r] = o
	s.wg.Go(func() {
		synced := false
		_ = o.informer.Watch(ctx, func(e client.Event) {
			if e.Type == client.Synced {
				synced = true
				return
			}
			if !synced {
				return
			}
			s.mu.Lock()
			wake := make([]func(), 0, len(o.holders))
			for _, f := range o.holders {
				wake = append(wake, f)
			}
			s.mu.Unlock()
			for _, f := range wake {
				f()
			}
		})
	})
	return o
}

// syncTimeout bounds the wait for an object that is watched anew.
const syncTimeout = 30 * time.Second

func (s *Sources) get(ctx context.Context, r Ref) (client.Object, error) {
	s.mu.Lock()
	o := s.objects[r]
	s.mu.Unlock()
	var inf client.Informer
	if o != nil {
		inf = o.informer
	} else {
		return s.c.Get(ctx, r.Kind.resource(), r.Namespace, r.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if err := inf.WaitSynced(ctx); err != nil {
		return nil, err
	}
	obj, ok := inf.Get(r.Namespace, r.Name)
	if !ok {
		return nil, apierrors.NewNotFound(r.Kind.resource().GroupResource(), r.Name)
	}
	return obj, nil
}

// ConfigMap returns the object as it is now (shared: read only).
func (s *Sources) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	o, err := s.get(ctx, Ref{ConfigMap, namespace, name})
	if err != nil {
		return nil, notFoundText(err, "configmap", name)
	}
	return o.(*corev1.ConfigMap), nil
}

// Secret returns the object as it is now (shared: read only).
func (s *Sources) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	o, err := s.get(ctx, Ref{Secret, namespace, name})
	if err != nil {
		return nil, notFoundText(err, "secret", name)
	}
	return o.(*corev1.Secret), nil
}

// TrustBundle returns the object as it is now (shared: read only).
func (s *Sources) TrustBundle(ctx context.Context, name string) (*certificatesv1.ClusterTrustBundle, error) {
	o, err := s.get(ctx, Ref{TrustBundle, "", name})
	if err != nil {
		return nil, err
	}
	return o.(*certificatesv1.ClusterTrustBundle), nil
}

// TrustBundles returns the bundles of a signer that match a selector (shared: read only).
func (s *Sources) TrustBundles(ctx context.Context, signer string, selector labels.Selector) ([]*certificatesv1.ClusterTrustBundle, error) {
	all := Ref{Kind: TrustBundle}
	s.mu.Lock()
	o := s.objects[all]
	s.mu.Unlock()
	var list []client.Object
	if o != nil {
		ctx, cancel := context.WithTimeout(ctx, syncTimeout)
		defer cancel()
		if err := o.informer.WaitSynced(ctx); err != nil {
			return nil, err
		}
		list = o.informer.List("")
	} else {
		l, err := s.c.List(ctx, all.Kind.resource(), "", metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		list = l.Items
	}
	var out []*certificatesv1.ClusterTrustBundle
	for _, o := range list {
		if b := o.(*certificatesv1.ClusterTrustBundle); b.Spec.SignerName == signer && selector.Matches(labels.Set(b.Labels)) {
			out = append(out, b)
		}
	}
	return out, nil
}

// notFoundText gives a not-found error the kubelet's usual words.
func notFoundText(err error, kind, name string) error {
	if !apierrors.IsNotFound(err) {
		return err
	}
	gr := client.ConfigMaps.GVR.GroupResource()
	gr.Resource = kind
	return apierrors.NewNotFound(gr, name)
}

// Of returns the objects that a pod refers to.
func Of(pod *corev1.Pod) []Ref {
	seen := map[Ref]bool{}
	var out []Ref
	add := func(k Kind, name string) {
		r := Ref{k, pod.Namespace, name}
		if name != "" && !seen[r] {
			seen[r] = true
			out = append(out, r)
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.ConfigMap != nil {
			add(ConfigMap, v.ConfigMap.Name)
		}
		if v.Secret != nil {
			add(Secret, v.Secret.SecretName)
		}
		if v.Projected != nil {
			for _, p := range v.Projected.Sources {
				if p.ConfigMap != nil {
					add(ConfigMap, p.ConfigMap.Name)
				}
				if p.Secret != nil {
					add(Secret, p.Secret.Name)
				}
				if t := p.ClusterTrustBundle; t != nil {
					r := Ref{Kind: TrustBundle}
					if t.Name != nil {
						r.Name = *t.Name
					}
					if !seen[r] {
						seen[r] = true
						out = append(out, r)
					}
				}
			}
		}
	}
	env := func(vars []corev1.EnvVar, from []corev1.EnvFromSource) {
		for i := range vars {
			if vf := vars[i].ValueFrom; vf != nil {
				if vf.ConfigMapKeyRef != nil {
					add(ConfigMap, vf.ConfigMapKeyRef.Name)
				}
				if vf.SecretKeyRef != nil {
					add(Secret, vf.SecretKeyRef.Name)
				}
			}
		}
		for i := range from {
			if from[i].ConfigMapRef != nil {
				add(ConfigMap, from[i].ConfigMapRef.Name)
			}
			if from[i].SecretRef != nil {
				add(Secret, from[i].SecretRef.Name)
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		env(pod.Spec.InitContainers[i].Env, pod.Spec.InitContainers[i].EnvFrom)
	}
	for i := range pod.Spec.Containers {
		env(pod.Spec.Containers[i].Env, pod.Spec.Containers[i].EnvFrom)
	}
	for i := range pod.Spec.EphemeralContainers {
		env(pod.Spec.EphemeralContainers[i].Env, pod.Spec.EphemeralContainers[i].EnvFrom)
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		add(Secret, s.Name)
	}
	return out
}
