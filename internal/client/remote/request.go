package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion/queryparams"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// maxBody bounds an answer that is read as a whole.
const maxBody = 1 << 30

// tries bounds how often a request is sent that the server asks to send later.
const tries = 10

type answer struct {
	body        []byte
	contentType string
}

// path is the URL path of a resource, an object or a subresource.
func path(gvr schema.GroupVersionResource, namespace, name, subresource string) string {
	p := "/api/" + gvr.Version
	if gvr.Group != "" {
		p = "/apis/" + gvr.Group + "/" + gvr.Version
	}
	if namespace != "" {
		p += "/namespaces/" + url.PathEscape(namespace)
	}
	p += "/" + gvr.Resource
	if name != "" {
		p += "/" + url.PathEscape(name)
	}
	if subresource != "" {
		p += "/" + subresource
	}
	return p
}

// query encodes a request's options.
func query(opts any) (url.Values, error) {
	v, err := queryparams.Convert(opts)
	if err != nil {
		return nil, fmt.Errorf("encode options: %w", err)
	}
	v.Del("kind")
	v.Del("apiVersion")
	return v, nil
}

// open sends a request and returns the answer of one that succeeded.
func (c *Client) open(ctx context.Context, method, path string, query url.Values, body []byte, contentType, accept string) (*http.Response, error) {
	u := *c.base
	u = *u.JoinPath(path)
	u.RawQuery = query.Encode()
	for n := 1; ; n++ {
		r, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		transport, token := c.link.get()
		r.Header.Set("User-Agent", c.userAgent)
		r.Header.Set("Accept", accept)
		if contentType != "" {
			r.Header.Set("Content-Type", contentType)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		if resp.StatusCode < 300 {
			return resp, nil
		}
		err = c.failure(resp, method)
		wait, later := retryAfter(resp)
		if !later || n == tries {
			return nil, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
}

// retryAfter is how long a busy server asks to wait.
func retryAfter(r *http.Response) (time.Duration, bool) {
	if r.StatusCode != http.StatusTooManyRequests && r.StatusCode < 500 {
		return 0, false
	}
	seconds, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 60 {
		return 0, false
	}
	return time.Duration(seconds) * time.Second, true
}

// failure reads an answer that says no. It is always the API's own kind of error.
func (c *Client) failure(r *http.Response, method string) error {
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil {
		if obj, err := c.codec.decode(body, r.Header.Get("Content-Type")); err == nil {
			if status, ok := obj.(*metav1.Status); ok && status.Status != metav1.StatusSuccess {
				return &apierrors.StatusError{ErrStatus: *status}
			}
		}
	}
	seconds, _ := strconv.Atoi(r.Header.Get("Retry-After"))
	return apierrors.NewGenericServerResponse(r.StatusCode, method, schema.GroupResource{}, "", string(body), seconds, true)
}

// send is open for an answer that is read as a whole.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body []byte, contentType, accept string) (answer, error) {
	r, err := c.open(ctx, method, path, query, body, contentType, accept)
	if err != nil {
		return answer{}, err
	}
	defer r.Body.Close()
	out := answer{contentType: r.Header.Get("Content-Type")}
	if out.body, err = io.ReadAll(io.LimitReader(r.Body, maxBody+1)); err != nil {
		return answer{}, fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if len(out.body) > maxBody {
		return answer{}, errors.New(method + " " + path + ": the answer is too large")
	}
	return out, nil
}
