package remote

import (
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	serializerjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"github.com/proa-dev/proa/internal/client"
)

const (
	typeProtobuf = "application/vnd.kubernetes.protobuf"
	typeJSON     = "application/json"
	accept       = typeProtobuf + "," + typeJSON
	magic        = "k8s\x00" // what Kubernetes' protobuf begins with
)

// codec turns objects into bodies and back: protobuf for the types of the scheme,
// JSON for the rest (custom resources).
type codec struct {
	scheme *runtime.Scheme
	proto  *protobuf.Serializer
	json   *serializerjson.Serializer
}

func newCodec(scheme *runtime.Scheme) *codec {
	return &codec{scheme: scheme, proto: protobuf.NewSerializer(scheme, scheme),
		json: serializerjson.NewSerializerWithOptions(serializerjson.DefaultMetaFactory, scheme, scheme, serializerjson.SerializerOptions{})}
}

// encode returns a body and its type. obj is left as it is.
func (c *codec) encode(obj runtime.Object) (body []byte, contentType string, err error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		body, err = u.MarshalJSON()
		return body, typeJSON, err
	}
	kinds, _, err := c.scheme.ObjectKinds(obj)
	if err != nil {
		return nil, "", err
	}
	apiVersion, kind := kinds[0].ToAPIVersionAndKind()
	if m, ok := obj.(interface{ Marshal() ([]byte, error) }); ok {
		unknown := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}}
		if unknown.Raw, err = m.Marshal(); err != nil {
			return nil, "", err
		}
		body := make([]byte, len(magic)+unknown.Size())
		copy(body, magic)
		if _, err := unknown.MarshalTo(body[len(magic):]); err != nil {
			return nil, "", err
		}
		return body, typeProtobuf, nil
	}
	// A few types have no protobuf.
	b, err := json.Marshal(obj)
	if err != nil {
		return nil, "", err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, "", err
	}
	for key, value := range map[string]string{"apiVersion": apiVersion, "kind": kind} {
		if fields[key], err = json.Marshal(value); err != nil {
			return nil, "", err
		}
	}
	body, err = json.Marshal(fields)
	return body, typeJSON, err
}

// decode reads an object of any kind.
func (c *codec) decode(body []byte, contentType string) (runtime.Object, error) {
	if strings.HasPrefix(contentType, typeProtobuf) {
		obj, _, err := c.proto.Decode(body, nil, nil)
		return obj, err
	}
	var kind metav1.TypeMeta
	if err := json.Unmarshal(body, &kind); err != nil {
		return nil, fmt.Errorf("decode an answer of type %q: %w", contentType, err)
	}
	if c.scheme.Recognizes(kind.GroupVersionKind()) {
		obj, _, err := c.json.Decode(body, nil, nil)
		return obj, err
	}
	obj, _, err := unstructured.UnstructuredJSONScheme.Decode(body, nil, nil)
	return obj, err
}

// object is decode for what a caller gets: typed objects carry no kind, as in process.
func (c *codec) object(body []byte, contentType string) (client.Object, error) {
	obj, err := c.decode(body, contentType)
	if err != nil {
		return nil, err
	}
	out, ok := obj.(client.Object)
	if !ok {
		return nil, fmt.Errorf("the server answered with a %T, which is no object", obj)
	}
	return bare(out), nil
}

func bare(obj client.Object) client.Object {
	if _, ok := obj.(*unstructured.Unstructured); !ok {
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	return obj
}

// list reads a list.
func (c *codec) list(body []byte, contentType string) (client.List, error) {
	obj, err := c.decode(body, contentType)
	if err != nil {
		return client.List{}, err
	}
	about, err := meta.ListAccessor(obj)
	if err != nil {
		return client.List{}, fmt.Errorf("the server answered with a %T, which is no list", obj)
	}
	out := client.List{ResourceVersion: about.GetResourceVersion(), Continue: about.GetContinue(), Items: make([]client.Object, 0, meta.LenList(obj))}
	err = meta.EachListItem(obj, func(item runtime.Object) error {
		o, ok := item.(client.Object)
		if !ok {
			return fmt.Errorf("the list holds a %T, which is no object", item)
		}
		out.Items = append(out.Items, bare(o))
		return nil
	})
	return out, err
}
