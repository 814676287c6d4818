package endpoint

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/proa-dev/proa/internal/api"
)

// decoders read bodies.
type decoders struct {
	lax, strict, yaml, yamls, proto runtime.Serializer
	scheme                          *runtime.Scheme
}

// body is a request's body as it came.
type body struct {
	data     []byte
	encoding encoding
}

// readBody reads the body of a write.
func (q *request) readBody(noProto bool) (body, error) {
	e, err := bodyEncoding(q.r, noProto)
	if err != nil {
		return body{}, err
	}
	data, err := q.body()
	return body{data: data, encoding: e}, err
}

// decode reads an object of kind gvk. validation is the option fieldValidation.
func (q *request) decode(b body, gvk schema.GroupVersionKind, validation string) (runtime.Object, error) {
	obj, strict, err := q.h.decoders.decode(b, gvk, q.custom(gvk), validation != metav1.FieldValidationIgnore)
	if err != nil {
		return nil, err
	}
	if len(strict) == 0 {
		return obj, nil
	}
	if validation == metav1.FieldValidationStrict {
		return nil, cannotBeHandled(gvk, gvk, runtime.NewStrictDecodingError(strict))
	}
	for _, s := range strict {
		q.warn(s.Error())
	}
	return obj, nil
}

// unstructured says that the resource is a custom one.
func (q *request) unstructured() bool {
	_, ok := q.res.New().(*unstructured.Unstructured)
	return ok
}

// custom returns the custom resource whose kind gvk is, nil when it is of another kind.
func (q *request) custom(gvk schema.GroupVersionKind) *api.Resource {
	if q.res == nil || gvk != q.res.GVK || !q.unstructured() {
		return nil
	}
	return q.res
}

// decode returns the object and what strict decoding complains about.
// custom is the custom resource that gvk is the kind of (nil: it is a built-in kind).
func (d *decoders) decode(b body, gvk schema.GroupVersionKind, custom *api.Resource, strict bool) (runtime.Object, []error, error) {
	if custom != nil {
		return d.decodeCustom(b, custom, strict)
	}
	var s runtime.Serializer
	switch {
	case b.encoding == encodeProto:
		s = d.proto
		if len(b.data) == 0 {
			return nil, nil, unrecognized(gvk, errors.New("empty data"), nil)
		}
	case b.encoding == encodeYAML && strict:
		s = d.yamls
	case b.encoding == encodeYAML:
		s = d.yaml
	case strict:
		s = d.strict
	default:
		s = d.lax
	}
	defaults := gvk
	obj, have, err := s.Decode(b.data, &defaults, nil)
	var complaints []error
	if err != nil {
		if list, ok := runtime.AsStrictDecodingError(err); ok && obj != nil {
			complaints = list.Errors()
		} else if have != nil && have.Kind != "" {
			return nil, nil, cannotBeHandled(*have, gvk, err)
		} else {
			return nil, nil, unrecognized(gvk, err, b.data)
		}
	}
	if have == nil || have.Kind == "" {
		have = &gvk
	}
	if have.GroupVersion() != gvk.GroupVersion() && have.Kind == gvk.Kind {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", have.GroupVersion(), gvk.GroupVersion()))
	}
	if *have != gvk {
		return nil, nil, cannotBeHandled(*have, gvk, fmt.Errorf("converting (%s.%s) to (%s): unknown conversion", have.Version, have.Kind, gvk.Kind))
	}
	return obj, complaints, nil
}

func cannotBeHandled(have, want schema.GroupVersionKind, err error) error {
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", have.Kind, have.Version, want.Kind, err))
}

func unrecognized(want schema.GroupVersionKind, err error, data []byte) error {
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", want.Kind, err, summary(data)))
}

// summary shows the beginning of what cannot be read.
func summary(data []byte) string {
	const most = 30
	if len(data) == 0 {
		return "<empty>"
	}
	cut := ""
	if len(data) > most {
		data, cut = data[:most], " ..."
	}
	if data[0] == '{' || data[0] == '[' {
		return string(data) + cut
	}
	return fmt.Sprintf("%x", data) + cut
}

// decodeCustom reads a custom resource, of which its Resource knows the schema.
func (d *decoders) decodeCustom(b body, res *api.Resource, strict bool) (runtime.Object, []error, error) {
	gvk, data := res.GVK, b.data
	var complaints []error
	switch b.encoding {
	case encodeProto:
		return nil, nil, unsupportedMediaType(formOptions{noProto: true}.accepted())
	case encodeYAML:
		j, err := yaml.YAMLToJSON(data)
		if err != nil {
			return nil, nil, unrecognized(gvk, err, data)
		}
		if strict {
			if _, err := yaml.YAMLToJSONStrict(data); err != nil {
				complaints = append(complaints, err)
			}
		}
		data = j
	}
	object := map[string]any{}
	if strict && b.encoding == encodeJSON {
		found, err := kjson.UnmarshalStrict(data, &object)
		if err != nil {
			return nil, nil, unrecognized(gvk, err, data)
		}
		complaints = append(complaints, found...)
	} else if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &object); err != nil {
		return nil, nil, unrecognized(gvk, err, data)
	}
	u := &unstructured.Unstructured{Object: object}
	if object == nil || u.GetKind() == "" {
		return nil, nil, unrecognized(gvk, fmt.Errorf("Object 'Kind' is missing in '%s'", summary(data)), data)
	}
	if have := u.GroupVersionKind(); have != gvk {
		if have.Kind == gvk.Kind {
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", have.GroupVersion(), gvk.GroupVersion()))
		}
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", have.Kind, gvk.Kind))
	}
	if res.Coerce == nil {
		if err := checkMetadata(object); err != nil {
			return nil, nil, cannotBeHandled(gvk, gvk, err)
		}
		return u, complaints, nil
	}
	unknown, err := res.Coerce(u, strict)
	if err != nil {
		return nil, nil, cannotBeHandled(gvk, gvk, err)
	}
	for _, path := range unknown {
		complaints = append(complaints, fmt.Errorf("unknown field %q", path))
	}
	return u, complaints, nil
}

// checkMetadata makes sure that the metadata of a custom resource has the types
// that metadata has: the accessors of Unstructured take what they do not
// understand for absent.
func checkMetadata(object map[string]any) error {
	meta, ok := object["metadata"]
	if !ok || meta == nil {
		delete(object, "metadata")
		return nil
	}
	m, ok := meta.(map[string]any)
	if !ok {
		return fmt.Errorf("metadata: expected an object, got %T", meta)
	}
	j, err := stdjson.Marshal(m)
	if err != nil {
		return err
	}
	var typed metav1.ObjectMeta
	if err := kjson.UnmarshalCaseSensitivePreserveInts(j, &typed); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	return nil
}

// deleteOptions reads the options of a delete: the body's, or the URL's when there is no body.
func (q *request) deleteOptions() (metav1.DeleteOptions, error) {
	var opts metav1.DeleteOptions
	var data []byte
	var err error
	if q.r.ContentLength != 0 {
		if data, err = q.body(); err != nil {
			return opts, err
		}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return opts, q.deleteOptionsOfURL(&opts)
	}
	e, err := bodyEncoding(q.r, false)
	if err != nil {
		return opts, err
	}
	s := q.h.decoders.lax
	switch e {
	case encodeProto:
		s = q.h.decoders.proto
	case encodeYAML:
		s = q.h.decoders.yaml
	}
	// DeleteOptions is in every group, with one form.
	defaults := schema.GroupVersionKind{Version: "v1", Kind: "DeleteOptions"}
	obj, have, err := s.Decode(data, &defaults, &opts)
	if err != nil {
		if have != nil && have.Kind != "" {
			return opts, cannotBeHandled(*have, defaults, err)
		}
		return opts, unrecognized(defaults, err, data)
	}
	if obj != runtime.Object(&opts) {
		o, ok := obj.(*metav1.DeleteOptions)
		if !ok {
			return opts, apierrors.NewBadRequest("decoded object cannot be converted to DeleteOptions")
		}
		opts = *o
	}
	return opts, nil
}

// patchType reads the type of a patch.
func patchType(r *http.Request, custom bool) (string, error) {
	t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	t = strings.TrimSpace(t)
	accepted := []string{"application/json-patch+json", "application/merge-patch+json"}
	if !custom {
		accepted = append(accepted, "application/strategic-merge-patch+json")
	}
	accepted = append(accepted, "application/apply-patch+yaml")
	for _, a := range accepted {
		if t == a {
			return t, nil
		}
	}
	return "", unsupportedMediaType(accepted)
}
