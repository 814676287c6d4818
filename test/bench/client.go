//go:build bench

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
)

// client talks to the API server over one TLS connection, in protobuf, with no
// limit on its rate.
type client struct {
	*rest.RESTClient
	http    *http.Client
	host    string
	buffers *sync.Pool
}

func newClient(cfg *rest.Config) (*client, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme))
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	c := rest.CopyConfig(cfg)
	c.QPS, c.DisableCompression = -1, true
	c.APIPath, c.GroupVersion = "/api", &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	hc, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, err
	}
	rc, err := rest.RESTClientForConfigAndClient(c, hc)
	if err != nil {
		return nil, err
	}
	return &client{RESTClient: rc, http: hc, host: cfg.Host, buffers: &sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}}, nil
}

func (c *client) nodeReady(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var list corev1.NodeList
	if err := c.Get().Resource("nodes").Do(ctx).Into(&list); err != nil {
		return false, err
	}
	for _, n := range list.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return true, nil
			}
		}
	}
	return false, nil
}

// fetch reads a path to its end, the bytes dropped, and returns their number.
func (c *client) fetch(ctx context.Context, path, accept string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.host+path, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", accept)
	r, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	// As client-go reads: into a buffer that takes whatever has come.
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, *buf)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("get %s: %s", path, r.Status)
	}
	return n, err
}

// send posts an encoded object.
func (c *client) send(ctx context.Context, path, contentType, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.host+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", runtime.ContentTypeProtobuf)
	r, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusCreated {
		err = fmt.Errorf("post %s: %s: %.300s", path, r.Status, b)
	}
	return err
}
