package remote

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/proa-dev/proa/internal/client"
)

const (
	// A watch is ended and begun again between these two, so that watches wander
	// over the servers behind one address.
	watchAtLeast = 5 * time.Minute
	watchAtMost  = 10 * time.Minute

	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 30 * time.Second
	// A watch that lived so long was a good one.
	goodWatch = 5 * time.Second

	maxFrame = 64 << 20
)

// run keeps the view up to date until ctx ends: a list, then watches from where the
// one before ended, and a list again when the server has forgotten that revision.
func (i *informer) run(ctx context.Context) {
	listed, from, backoff := false, "0", firstBackoff // any state will do for a beginning
	for ctx.Err() == nil {
		start := time.Now()
		var err error
		if !listed {
			if from, err = i.list(ctx, from); err == nil {
				listed = true
				continue
			}
		} else {
			from, err = i.watch(ctx, from)
		}
		switch {
		case ctx.Err() != nil:
		case apierrors.IsNotFound(err) && !listed:
			// Only a resource that is not served answers so. In process, too, its view ends.
			i.fail(fmt.Errorf("no resource %s is served: %w", i.gvr, err))
			return
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
			// What was missed is found by a new list, that must not be older.
			listed, from = false, ""
		case err == nil && time.Since(start) > goodWatch:
			backoff = firstBackoff
			continue
		}
		if time.Since(start) > goodWatch {
			backoff = firstBackoff
		}
		if err != nil && ctx.Err() == nil {
			i.c.log.Debug("the view of a resource is begun again", "resource", i.gvr.String(), "err", err)
		}
		// Clients that lost the same server do not come back at the same moment.
		timer := time.NewTimer(backoff/2 + rand.N(backoff))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		backoff = min(2*backoff, lastBackoff)
	}
	i.fail(ErrClosed)
}

// options select the scope.
func (i *informer) options() metav1.ListOptions {
	var opts metav1.ListOptions
	set := fields.Set{}
	if i.scope.NodeName != "" {
		set["spec.nodeName"] = i.scope.NodeName
	}
	if i.scope.Name != "" {
		set["metadata.name"] = i.scope.Name
	}
	opts.FieldSelector = set.AsSelector().String()
	return opts
}

// list replaces the state, and returns the revision it is of.
func (i *informer) list(ctx context.Context, from string) (string, error) {
	opts := i.options()
	opts.ResourceVersion = from
	l, err := i.c.List(ctx, i.gvr, i.scope.Namespace, opts)
	if err != nil {
		return from, err
	}
	i.replace(l.Items, number(l.ResourceVersion))
	return l.ResourceVersion, nil
}

func number(resourceVersion string) int64 {
	n, _ := strconv.ParseInt(resourceVersion, 10, 64)
	return n
}

// watch follows the changes after a revision until the watch ends, and returns the
// revision that it reached.
func (i *informer) watch(ctx context.Context, from string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // also ends the stream
	opts := i.options()
	opts.Watch, opts.ResourceVersion, opts.AllowWatchBookmarks = true, from, true
	seconds := int64((watchAtLeast + rand.N(watchAtMost-watchAtLeast)) / time.Second)
	opts.TimeoutSeconds = &seconds
	q, err := query(&opts)
	if err != nil {
		return from, err
	}
	r, err := i.c.open(ctx, http.MethodGet, path(i.gvr, i.scope.Namespace, "", ""), q, nil, "", typeProtobuf+";stream=watch,"+typeJSON)
	if err != nil {
		return from, err
	}
	defer r.Body.Close()
	next := frames(r.Body, r.Header.Get("Content-Type"))
	for {
		kind, raw, err := next()
		if errors.Is(err, io.EOF) {
			return from, nil
		}
		if err != nil {
			return from, fmt.Errorf("read the watch: %w", err)
		}
		revision, err := i.event(kind, raw, r.Header.Get("Content-Type"))
		if err != nil {
			return from, err
		}
		from = revision
	}
}

// event takes one event of the stream in.
func (i *informer) event(kind string, raw []byte, contentType string) (revision string, err error) {
	obj, err := i.c.codec.decode(raw, contentType)
	if err != nil {
		return "", err
	}
	if status, ok := obj.(*metav1.Status); ok && kind == "ERROR" {
		return "", &apierrors.StatusError{ErrStatus: *status}
	}
	o, ok := obj.(client.Object)
	if !ok {
		return "", fmt.Errorf("the watch tells %s of a %T, which is no object", kind, obj)
	}
	revision = o.GetResourceVersion()
	switch kind {
	case "ADDED", "MODIFIED", "DELETED":
		i.apply(client.EventType(kind), bare(o), number(revision))
	case "BOOKMARK":
		i.progress(number(revision))
	default:
		return "", fmt.Errorf("the watch tells of an unknown event %q", kind)
	}
	return revision, nil
}

// frames reads the events of a stream: length-delimited protobuf, or JSON.
func frames(r io.Reader, contentType string) func() (kind string, raw []byte, err error) {
	if !strings.HasPrefix(contentType, typeProtobuf) {
		dec := json.NewDecoder(r)
		return func() (string, []byte, error) {
			var e struct {
				Type   string          `json:"type"`
				Object json.RawMessage `json:"object"`
			}
			err := dec.Decode(&e)
			return e.Type, e.Object, err
		}
	}
	return func() (string, []byte, error) {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return "", nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxFrame {
			return "", nil, fmt.Errorf("an event of %d bytes is too large", n)
		}
		frame := make([]byte, n) // the object keeps parts of it
		if _, err := io.ReadFull(r, frame); err != nil {
			return "", nil, err
		}
		var e metav1.WatchEvent
		if err := e.Unmarshal(frame); err != nil {
			return "", nil, err
		}
		return e.Type, e.Object.Raw, nil
	}
}
