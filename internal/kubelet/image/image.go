// Package image brings the images of containers onto the node: pull policies,
// credentials of imagePullSecrets, one pull at a time for the same image, back-off
// after failures, and who may use a cached private image. It does not collect
// unused images (see package kubelet) and does not store layers: the runtime does.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/cri"
)

// The waiting reasons of a container whose image is not there.
const (
	ReasonErrImagePull   = "ErrImagePull"
	ReasonBackOff        = "ImagePullBackOff"
	ReasonNeverPull      = "ErrImageNeverPull"
	ReasonInvalidName    = "InvalidImageName"
	ReasonInspect        = "ImageInspectError"
	ReasonUnavailable    = "RegistryUnavailable"
	ReasonSignatureWrong = "SignatureValidationFailed"
)

// Back-off of failed pulls: 10 s, doubled up to 5 min, forgotten after 10 min.
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 5 * time.Minute
)

// Error is why an image is not there.
type Error struct {
	Reason, Message string
	// Retry is when to try again; zero: only when the pod changes.
	Retry time.Time
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// EventFunc records an event about a container of a pod.
type EventFunc func(pod *corev1.Pod, container, eventType, reason, format string, args ...any)

// Puller is shared by all pods of the node.
type Puller struct {
	images  cri.Images
	event   EventFunc
	pulled  func()
	log     *slog.Logger
	records *records

	mu      sync.Mutex
	backoff map[string]*backoff
	pulls   map[string]*pull
}

type backoff struct {
	delay   time.Duration
	failed  time.Time
	lastErr *Error
}

type pull struct {
	done    chan struct{}
	ref     string
	err     error
	waiters int
	cancel  context.CancelFunc
}

// New returns a puller that keeps its pull records in file ("" for none) and calls
// pulled, which must not block, after each pull.
func New(images cri.Images, file string, event EventFunc, pulled func(), log *slog.Logger) *Puller {
	return &Puller{images: images, event: event, pulled: pulled, log: log, records: openRecords(file, log), backoff: map[string]*backoff{}, pulls: map[string]*pull{}}
}

// Image is what a container needs to know of its image.
type Image struct {
	// Ref is what CreateContainer gets, ID what the status shows.
	Ref string
	// UID and Username are the user of the image's configuration.
	UID      *int64
	Username string
}

// Ensure returns the image of a container, pulled if its policy says so.
func (p *Puller) Ensure(ctx context.Context, pod *corev1.Pod, container, name string, policy corev1.PullPolicy, handler string, secrets []*corev1.Secret, sandbox *runtimeapi.PodSandboxConfig) (Image, *Error) {
	normal, err := Normalize(name)
	if err != nil {
		msg := fmt.Sprintf("Failed to apply default image tag %q: %v", name, err)
		p.event(pod, container, corev1.EventTypeWarning, "InspectFailed", "%s", msg)
		return Image{}, &Error{Reason: ReasonInvalidName, Message: msg}
	}
	spec := &runtimeapi.ImageSpec{Image: normal, UserSpecifiedImage: name, RuntimeHandler: handler}
	have, err := p.status(ctx, spec)
	if err != nil {
		msg := fmt.Sprintf("Failed to inspect image %q: %v", name, cri.ErrorText(err))
		p.event(pod, container, corev1.EventTypeWarning, "InspectFailed", "%s", msg)
		return Image{}, &Error{Reason: ReasonInspect, Message: msg, Retry: time.Now().Add(backoffFirst)}
	}
	creds := credentials(normal, secrets)
	if policy == "" {
		policy = corev1.PullIfNotPresent
	}
	if have != nil && policy != corev1.PullAlways {
		if p.records.allowed(have.Id, creds) {
			p.event(pod, container, corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine and can be accessed by the pod", name)
			return toImage(have), nil
		}
		if policy == corev1.PullNever {
			msg := fmt.Sprintf("Container image %q is present with pull policy of Never, but does not have the proper credentials to access the image", name)
			p.event(pod, container, corev1.EventTypeWarning, ReasonNeverPull, "%s", msg)
			return Image{}, &Error{Reason: ReasonNeverPull, Message: msg}
		}
	}
	if have == nil && policy == corev1.PullNever {
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", name)
		p.event(pod, container, corev1.EventTypeWarning, ReasonNeverPull, "%s", msg)
		return Image{}, &Error{Reason: ReasonNeverPull, Message: msg}
	}
	return p.pullFor(ctx, pod, container, name, spec, creds, sandbox)
}

func (p *Puller) pullFor(ctx context.Context, pod *corev1.Pod, container, name string, spec *runtimeapi.ImageSpec, creds []credential, sandbox *runtimeapi.PodSandboxConfig) (Image, *Error) {
	key := string(pod.UID) + "/" + spec.Image
	if wait, last := p.waiting(key); wait > 0 {
		msg := fmt.Sprintf("Back-off pulling image %q", name)
		p.event(pod, container, corev1.EventTypeNormal, "BackOff", "%s", msg)
		if last != nil {
			msg += ": " + last.Reason + ": " + last.Message
		}
		return Image{}, &Error{Reason: ReasonBackOff, Message: msg, Retry: time.Now().Add(wait)}
	}
	p.event(pod, container, corev1.EventTypeNormal, "Pulling", "Pulling image %q", name)
	begin := time.Now()
	ref, used, err := p.pull(ctx, spec, creds, sandbox)
	if err != nil {
		if ctx.Err() != nil {
			return Image{}, &Error{Reason: ReasonErrImagePull, Message: ctx.Err().Error()}
		}
		reason, msg := classify(name, err)
		p.event(pod, container, corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", name, msg)
		p.event(pod, container, corev1.EventTypeWarning, "Failed", "Error: %s", reason)
		e := &Error{Reason: reason, Message: msg}
		p.failed(key, e)
		e.Retry = time.Now()
		return Image{}, e
	}
	p.mu.Lock()
	delete(p.backoff, key)
	p.mu.Unlock()
	img, err := p.status(ctx, &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: spec.RuntimeHandler})
	if err != nil || img == nil {
		img = &runtimeapi.Image{Id: ref}
	}
	p.records.add(img.Id, used)
	p.pulled()
	took := time.Since(begin).Truncate(time.Millisecond)
	p.event(pod, container, corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.", name, took, took, img.Size)
	return toImage(img), nil
}

func (p *Puller) status(ctx context.Context, spec *runtimeapi.ImageSpec) (*runtimeapi.Image, error) {
	r, err := p.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	if r.Image == nil || r.Image.Id == "" {
		return nil, nil
	}
	return r.Image, nil
}

func toImage(i *runtimeapi.Image) Image {
	out := Image{Ref: i.Id, Username: i.Username}
	if i.Uid != nil {
		uid := i.Uid.Value
		out.UID = &uid
	}
	return out
}

// pull shares one pull among those who want the same image with the same
// credentials. It ends when the last of them no longer wants it.
func (p *Puller) pull(ctx context.Context, spec *runtimeapi.ImageSpec, creds []credential, sandbox *runtimeapi.PodSandboxConfig) (string, *credential, error) {
	if len(creds) == 0 {
		ref, err := p.share(ctx, spec, nil, sandbox)
		return ref, nil, err
	}
	var errs []error
	for i := range creds {
		ref, err := p.share(ctx, spec, &creds[i], sandbox)
		if err == nil {
			return ref, &creds[i], nil
		}
		if ctx.Err() != nil {
			return "", nil, err
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return "", nil, errs[0]
	}
	return "", nil, errors.Join(errs...)
}

func (p *Puller) share(ctx context.Context, spec *runtimeapi.ImageSpec, cred *credential, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	key := spec.Image + "\x00" + spec.RuntimeHandler
	if cred != nil {
		key += "\x00" + cred.hash
	}
	p.mu.Lock()
	pl := p.pulls[key]
	if pl == nil {
		var pctx context.Context
		pl = &pull{done: make(chan struct{})}
		pctx, pl.cancel = context.WithCancel(context.WithoutCancel(ctx))
		p.pulls[key] = pl
		req := &runtimeapi.PullImageRequest{Image: spec, SandboxConfig: sandbox}
		if cred != nil {
			req.Auth = cred.auth
		}
		go func() {
			r, err := p.images.PullImage(pctx, req)
			if err == nil {
				pl.ref = r.ImageRef
			}
			pl.err = err
			p.mu.Lock()
			if p.pulls[key] == pl {
				delete(p.pulls, key)
			}
			p.mu.Unlock()
			pl.cancel()
			close(pl.done)
		}()
	}
	pl.waiters++
	p.mu.Unlock()
	select {
	case <-pl.done:
		return pl.ref, pl.err
	case <-ctx.Done():
		p.mu.Lock()
		pl.waiters--
		last := pl.waiters == 0
		if last && p.pulls[key] == pl {
			delete(p.pulls, key)
		}
		p.mu.Unlock()
		if last {
			pl.cancel()
			<-pl.done
		}
		return "", ctx.Err()
	}
}

func (p *Puller) waiting(key string) (time.Duration, *Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.backoff[key]
	if b == nil {
		return 0, nil
	}
	since := time.Since(b.failed)
	if since > 2*backoffMax {
		delete(p.backoff, key)
		return 0, nil
	}
	return b.delay - since, b.lastErr
}

func (p *Puller) failed(key string, e *Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.backoff[key]
	if b == nil {
		b = &backoff{delay: backoffFirst}
		p.backoff[key] = b
	} else {
		b.delay = min(2*b.delay, backoffMax)
	}
	b.failed, b.lastErr = time.Now(), e
}

// Forget drops the back-off of a pod that is gone.
func (p *Puller) Forget(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.backoff {
		if strings.HasPrefix(k, uid+"/") {
			delete(p.backoff, k)
		}
	}
}

// classify turns an error of the runtime into a reason and a message.
func classify(name string, err error) (reason, msg string) {
	text := cri.Message(err)
	for _, known := range []string{ReasonUnavailable, ReasonSignatureWrong} {
		if rest, ok := strings.CutPrefix(text, known); ok {
			what := map[string]string{
				ReasonUnavailable:    fmt.Sprintf("image pull failed for %s because the registry is unavailable", name),
				ReasonSignatureWrong: fmt.Sprintf("image pull failed for %s because the signature validation failed", name),
			}[known]
			return known, what + rest
		}
	}
	return ReasonErrImagePull, cri.ErrorText(err)
}

// Normalize adds the tag "latest" to a name without tag and digest.
func Normalize(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("couldn't parse image name %q: %w", name, err)
	}
	if _, tagged := named.(reference.Tagged); tagged {
		return name, nil
	}
	if _, digested := named.(reference.Digested); digested {
		return name, nil
	}
	return name + ":latest", nil
}
