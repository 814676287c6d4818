package remote

import (
	"context"
	"fmt"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
)

// call sends obj (nil: no body) and reads the object that comes back.
func (c *Client) call(ctx context.Context, method, path string, opts any, obj runtime.Object) (client.Object, error) {
	q, err := query(opts)
	if err != nil {
		return nil, err
	}
	var body []byte
	var contentType string
	if obj != nil {
		if body, contentType, err = c.codec.encode(obj); err != nil {
			return nil, fmt.Errorf("encode %T: %w", obj, err)
		}
	}
	a, err := c.send(ctx, method, path, q, body, contentType, accept)
	if err != nil {
		return nil, err
	}
	return c.codec.object(a.body, a.contentType)
}

func (c *Client) Get(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (client.Object, error) {
	return c.call(ctx, http.MethodGet, path(gvr, namespace, name, ""), &metav1.GetOptions{}, nil)
}

func (c *Client) List(ctx context.Context, gvr schema.GroupVersionResource, namespace string, opts metav1.ListOptions) (client.List, error) {
	opts.Watch = false
	q, err := query(&opts)
	if err != nil {
		return client.List{}, err
	}
	a, err := c.send(ctx, http.MethodGet, path(gvr, namespace, "", ""), q, nil, "", accept)
	if err != nil {
		return client.List{}, err
	}
	return c.codec.list(a.body, a.contentType)
}

func (c *Client) Create(ctx context.Context, gvr schema.GroupVersionResource, namespace, name, subresource string, obj client.Object, opts metav1.CreateOptions) (client.Object, error) {
	if subresource == "" {
		name = "" // it stands in the object
	}
	p := path(gvr, namespace, name, subresource)
	q, err := query(&opts)
	if err != nil {
		return nil, err
	}
	body, contentType, err := c.codec.encode(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", obj, err)
	}
	a, err := c.send(ctx, http.MethodPost, p, q, body, contentType, accept)
	if err != nil {
		return nil, err
	}
	out, err := c.codec.decode(a.body, a.contentType)
	if err != nil {
		return nil, err
	}
	if _, ok := out.(*metav1.Status); ok { // of a binding or an eviction
		return obj, nil
	}
	o, ok := out.(client.Object)
	if !ok {
		return nil, fmt.Errorf("the server answered with a %T, which is no object", out)
	}
	return bare(o), nil
}

func (c *Client) Update(ctx context.Context, gvr schema.GroupVersionResource, namespace, subresource string, obj client.Object, opts metav1.UpdateOptions) (client.Object, error) {
	return c.call(ctx, http.MethodPut, path(gvr, namespace, obj.GetName(), subresource), &opts, obj)
}

func (c *Client) Patch(ctx context.Context, gvr schema.GroupVersionResource, namespace, name, subresource string, kind types.PatchType, data []byte, opts metav1.PatchOptions) (client.Object, error) {
	q, err := query(&opts)
	if err != nil {
		return nil, err
	}
	a, err := c.send(ctx, http.MethodPatch, path(gvr, namespace, name, subresource), q, data, string(kind), accept)
	if err != nil {
		return nil, err
	}
	return c.codec.object(a.body, a.contentType)
}

func (c *Client) Delete(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, opts metav1.DeleteOptions) error {
	body, contentType, err := c.codec.encode(&opts)
	if err != nil {
		return fmt.Errorf("encode the options of a delete: %w", err)
	}
	_, err = c.send(ctx, http.MethodDelete, path(gvr, namespace, name, ""), nil, body, contentType, accept)
	return err
}
