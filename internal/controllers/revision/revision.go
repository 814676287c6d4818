// Package revision keeps the history of a controller object's pod template as
// ControllerRevisions, in the form that `kubectl rollout history` and `undo` read:
// each is a strategic merge patch that brings the template back.
package revision

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/owned"
)

// ErrCollision says that another revision has the name: the collision count is to
// be raised.
var ErrCollision = errors.New("the name of the revision is taken by another one")

// PodLabel is on every pod, and says of which revision it is.
const PodLabel = appsv1.ControllerRevisionHashLabelKey

// History is the revisions of the objects of one kind.
type History struct {
	Client client.Interface
	Index  *owned.Index[*appsv1.ControllerRevision]
	GVK    schema.GroupVersionKind // of the owners
	// HashLabel is the label of a revision that has its hash.
	HashLabel string
}

// Data returns what a revision keeps of a template: the patch that replaces it.
func Data(template *corev1.PodTemplateSpec) ([]byte, error) {
	text, err := json.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("encode the pod template: %w", err)
	}
	// By way of a map the keys are sorted: kubectl compares bytes.
	var t map[string]any
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, fmt.Errorf("encode the pod template: %w", err)
	}
	t["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": t}})
}

// Template returns the template that a revision of an object with the present
// template keeps.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var out struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &out); err != nil {
		return nil, fmt.Errorf("read controller revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	return &out.Spec.Template, nil
}

// Hash names a revision.
func Hash(data []byte, collisions *int32) string {
	h := fnv.New32a()
	_, _ = h.Write(data)
	if collisions != nil {
		_, _ = h.Write(strconv.AppendInt(nil, int64(*collisions), 10))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// Of returns the revisions of an owner, the oldest first, after it has adopted and
// let go of what its selector says.
func (h History) Of(ctx context.Context, owner client.Object, selector labels.Selector, live func(context.Context) (client.Object, error)) ([]*appsv1.ControllerRevision, error) {
	list, err := owned.Claim[*appsv1.ControllerRevision]{Client: h.Client, Kind: client.ControllerRevisions, Owner: owner, OwnerGVK: h.GVK, Selector: selector, Live: live}.
		Of(ctx, h.Index.OwnedOrOrphaned(owner.GetNamespace(), owner.GetUID()))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b *appsv1.ControllerRevision) int {
		if a.Revision != b.Revision {
			return int(max(-1, min(1, a.Revision-b.Revision)))
		}
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list, nil
}

// Next is the number of the revision that comes after those of a list in order.
func Next(list []*appsv1.ControllerRevision) int64 {
	if len(list) == 0 {
		return 1
	}
	return list[len(list)-1].Revision + 1
}

// Equal says that a revision keeps this data.
func Equal(r *appsv1.ControllerRevision, data []byte) bool { return bytes.Equal(r.Data.Raw, data) }

// Create makes a revision. When the one of that name is the same it is returned;
// when it is another the error is ErrCollision.
func (h History) Create(ctx context.Context, owner client.Object, templateLabels map[string]string, data []byte, number int64, collisions *int32) (*appsv1.ControllerRevision, error) {
	hash := Hash(data, collisions)
	own := maps.Clone(templateLabels)
	if own == nil {
		own = map[string]string{}
	}
	own[h.HashLabel] = hash
	prefix := owner.GetName()
	if len(prefix) > 223 {
		prefix = prefix[:223]
	}
	r := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{Namespace: owner.GetNamespace(), Name: prefix + "-" + hash, Labels: own, Annotations: maps.Clone(owner.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, h.GVK)}},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}
	made, err := client.ControllerRevisions.Create(ctx, h.Client, r)
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return nil, fmt.Errorf("create controller revision %s/%s: %w", r.Namespace, r.Name, err)
		}
		return made, nil
	}
	there, err := client.ControllerRevisions.Get(ctx, h.Client, r.Namespace, r.Name)
	if err != nil {
		return nil, fmt.Errorf("read controller revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	if !metav1.IsControlledBy(there, owner) || !Equal(there, data) {
		return nil, fmt.Errorf("%s/%s: %w", r.Namespace, r.Name, ErrCollision)
	}
	return there, nil
}

// Renumber gives a revision another number, when it has not got it.
func (h History) Renumber(ctx context.Context, r *appsv1.ControllerRevision, number int64) (*appsv1.ControllerRevision, error) {
	if r.Revision == number {
		return r, nil
	}
	out := r.DeepCopy()
	out.Revision = number
	out, err := client.ControllerRevisions.Update(ctx, h.Client, out)
	if err != nil {
		return nil, fmt.Errorf("renumber controller revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	return out, nil
}

// Delete deletes a revision.
func (h History) Delete(ctx context.Context, r *appsv1.ControllerRevision) error {
	uid := r.UID
	err := client.ControllerRevisions.Delete(ctx, h.Client, r.Namespace, r.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete controller revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	return nil
}

// Trim deletes the oldest revisions of a list that are not live, by hash or name, so
// that at most limit of the list stay.
func (h History) Trim(ctx context.Context, list []*appsv1.ControllerRevision, limit int, live map[string]bool) error {
	surplus := len(list) - limit
	for _, r := range list {
		if surplus <= 0 {
			return nil
		}
		if live[r.Labels[h.HashLabel]] || live[r.Name] {
			continue
		}
		if err := h.Delete(ctx, r); err != nil {
			return err
		}
		surplus--
	}
	return nil
}
