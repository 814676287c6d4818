package customresource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
)

// Webhooks calls conversion webhooks: it sends a ConversionReview and returns the answer's body.
type Webhooks interface {
	Call(ctx context.Context, to *apiextensionsv1.WebhookClientConfig, body []byte) ([]byte, error)
}

// webhookTimeout bounds one conversion by a webhook.
const webhookTimeout = 30 * time.Second

// toStored returns an object of a served version, which it may change, as it is stored.
func (k *kind) toStored(from *version, obj runtime.Object) (runtime.Object, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("unexpected %T", obj)
	}
	u.SetAPIVersion(from.gvk.GroupVersion().String())
	out, err := k.convert(u, k.stored)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// convert returns an object, which has its apiVersion, in another version; the
// object itself when that is its own.
func (k *kind) convert(u *unstructured.Unstructured, to *version) (*unstructured.Unstructured, error) {
	want := to.gvk.GroupVersion().String()
	if u.GetAPIVersion() == want {
		return u, nil
	}
	out, err := k.convertAll([]*unstructured.Unstructured{u}, to)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// fromStoredAll returns objects in a version with one call of the webhook.
func (k *kind) fromStoredAll(list []api.Object, to *version) ([]api.Object, error) {
	want := to.gvk.GroupVersion().String()
	out := make([]api.Object, len(list))
	var todo []*unstructured.Unstructured
	var at []int
	for i, obj := range list {
		u := obj.(*unstructured.Unstructured)
		if out[i] = u; u.GetAPIVersion() != want {
			todo, at = append(todo, u), append(at, i)
		}
	}
	if len(todo) == 0 {
		return out, nil
	}
	converted, err := k.convertAll(todo, to)
	if err != nil {
		return nil, err
	}
	for j, i := range at {
		out[i] = converted[j]
	}
	return out, nil
}

// convertAll returns objects, all of other versions, in a version.
func (k *kind) convertAll(list []*unstructured.Unstructured, to *version) ([]*unstructured.Unstructured, error) {
	want := to.gvk.GroupVersion().String()
	out := make([]*unstructured.Unstructured, len(list))
	if k.conversion != nil && k.conversion.Strategy == apiextensionsv1.WebhookConverter {
		var err error
		if out, err = k.review(list, to); err != nil {
			return nil, fmt.Errorf("conversion webhook for %s failed: %w", schema.FromAPIVersionAndKind(list[0].GetAPIVersion(), to.gvk.Kind), err)
		}
	} else {
		for i, u := range list {
			out[i] = u.DeepCopy()
			out[i].SetAPIVersion(want)
		}
	}
	for _, u := range out {
		u.SetGroupVersionKind(to.gvk)
		if _, err := to.coerce(u.Object, false, false); err != nil {
			return nil, err
		}
		to.fill(u.Object)
		delete(u.Object, "kind")
	}
	return out, nil
}

// review asks the webhook.
func (k *kind) review(list []*unstructured.Unstructured, to *version) ([]*unstructured.Unstructured, error) {
	hook := k.conversion.Webhook
	if hook == nil || hook.ClientConfig == nil || k.hooks == nil {
		return nil, errors.New("no webhook can be called")
	}
	uid, want := uuid.NewUUID(), to.gvk.GroupVersion().String()
	objects := make([]runtime.RawExtension, len(list))
	for i, u := range list {
		content := make(map[string]any, len(u.Object)+1)
		for name, value := range u.Object {
			content[name] = value
		}
		content["kind"] = to.gvk.Kind
		objects[i].Object = &unstructured.Unstructured{Object: content}
	}
	version, err := reviewVersion(hook.ConversionReviewVersions)
	if err != nil {
		return nil, err
	}
	// v1 and v1beta1 look the same.
	ask := apiextensionsv1.ConversionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: apiextensionsv1.GroupName + "/" + version, Kind: "ConversionReview"},
		Request:  &apiextensionsv1.ConversionRequest{UID: uid, DesiredAPIVersion: want, Objects: objects},
	}
	body, err := json.Marshal(&ask)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), webhookTimeout)
	defer cancel()
	raw, err := k.hooks.Call(ctx, hook.ClientConfig, body)
	if err != nil {
		return nil, err
	}
	var answer apiextensionsv1.ConversionReview
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return k.reviewed(list, &ask, &answer, to)
}

func reviewVersion(known []string) (string, error) {
	for _, v := range known {
		if v == "v1" || v == "v1beta1" {
			return v, nil
		}
	}
	return "", errors.New("no supported conversion review versions")
}

// reviewed checks a webhook's answer and returns its objects.
func (k *kind) reviewed(list []*unstructured.Unstructured, ask, answer *apiextensionsv1.ConversionReview, to *version) ([]*unstructured.Unstructured, error) {
	v1 := ask.APIVersion == apiextensionsv1.SchemeGroupVersion.String()
	if have, want := answer.GroupVersionKind(), ask.GroupVersionKind(); v1 && have != want {
		return nil, fmt.Errorf("expected webhook response of %v, got %v", want, have)
	}
	r := answer.Response
	if r == nil {
		return nil, errors.New("no response provided")
	}
	if v1 && r.UID != ask.Request.UID {
		return nil, fmt.Errorf("expected response.uid=%q, got %q", ask.Request.UID, r.UID)
	}
	if r.Result.Status != metav1.StatusSuccess {
		if r.Result.Message != "" {
			return nil, errors.New(r.Result.Message)
		}
		return nil, fmt.Errorf("response.result.status was '%s', not 'Success'", r.Result.Status)
	}
	if len(r.ConvertedObjects) != len(list) {
		return nil, fmt.Errorf("returned %d objects, expected %d", len(r.ConvertedObjects), len(list))
	}
	out := make([]*unstructured.Unstructured, len(list))
	for i, raw := range r.ConvertedObjects {
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(raw.Raw); err != nil {
			return nil, fmt.Errorf("returned invalid converted object at index %d: %w", i, err)
		}
		if err := restore(list[i], u, to); err != nil {
			return nil, fmt.Errorf("returned invalid converted object at index %d: %w", i, err)
		}
		out[i] = u
	}
	return out, nil
}

// restore checks that a converted object is what was sent, and gives it the
// metadata of that: a webhook may change labels and annotations only.
func restore(in, out *unstructured.Unstructured, to *version) error {
	if have, want := out.GroupVersionKind(), to.gvk; have.GroupVersion() != want.GroupVersion() {
		return fmt.Errorf("invalid groupVersion (expected %v, received %v)", want.GroupVersion(), have.GroupVersion())
	} else if have.Kind != want.Kind {
		return fmt.Errorf("invalid kind (expected %v, received %v)", want.Kind, have.Kind)
	}
	for _, x := range []struct{ what, have, want string }{
		{"name", out.GetName(), in.GetName()},
		{"namespace", out.GetNamespace(), in.GetNamespace()},
		{"UID", string(out.GetUID()), string(in.GetUID())},
	} {
		if x.have != x.want {
			return fmt.Errorf("must have the same %s: %v != %v", x.what, x.want, x.have)
		}
	}
	meta, ok := out.Object["metadata"].(map[string]any)
	if !ok {
		return errors.New("missing metadata in converted object")
	}
	kept := runtime.DeepCopyJSON(map[string]any{"metadata": in.Object["metadata"]})["metadata"]
	was, _ := kept.(map[string]any)
	if was == nil {
		was = map[string]any{}
	}
	for _, name := range []string{"labels", "annotations"} {
		values, found := meta[name]
		if !found || values == nil {
			delete(was, name)
			continue
		}
		m, ok := values.(map[string]any)
		if !ok {
			return fmt.Errorf("invalid metadata.%s of type %T in converted object", name, values)
		}
		for key, value := range m {
			if _, ok := value.(string); !ok {
				return fmt.Errorf("invalid metadata.%s[%q] of type %T in converted object", name, key, value)
			}
		}
		was[name] = m
	}
	out.Object["metadata"] = was
	if errs := validation.ValidateLabels(out.GetLabels(), field.NewPath("metadata", "labels")); len(errs) > 0 {
		return errs.ToAggregate()
	}
	return nil
}
