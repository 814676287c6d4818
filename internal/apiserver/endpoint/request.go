package endpoint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/auth"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// request is one request on its way through the stages.
type request struct {
	h    *Handler
	r    *http.Request
	w    response
	ctx  context.Context
	info RequestInfo
	user user.Info

	query  url.Values // parsed on demand
	cancel context.CancelFunc
	slot   chan struct{}
	warned []string

	// Set by dispatch for resources.
	res     *api.Resource
	storage rest.Storage
}

// response knows what has been answered already.
type response struct {
	http.ResponseWriter
	q        *request
	code     int
	hijacked bool
}

func (w *response) WriteHeader(code int) {
	if w.code == 0 && code >= 200 || code == http.StatusSwitchingProtocols {
		w.code = code
		w.q.writeWarnings()
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *response) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// Flush, Hijack: for those who ask for the interfaces; Unwrap for http.ResponseController.
func (w *response) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.hijacked = true
		if w.code == 0 {
			w.code = http.StatusSwitchingProtocols
		}
	}
	return c, rw, err
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// end runs when the request is over, whatever happened.
func (q *request) end(start time.Time) {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			q.release()
			panic(p)
		}
		q.h.log.Error("request panicked", "method", q.r.Method, "path", q.r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		if q.w.code == 0 && !q.w.hijacked {
			q.fail(apierrors.NewInternalError(errors.New("this request caused the API server to panic: look in its log for details")))
		} else if !q.w.hijacked {
			q.release()
			panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
		}
	}
	q.release()
	q.h.metrics.observe(q, time.Since(start))
}

func (q *request) release() {
	if q.slot != nil {
		<-q.slot
		q.slot = nil
	}
	if q.cancel != nil {
		q.cancel()
		q.cancel = nil
	}
}

// values are the parsed options of the URL.
func (q *request) values() (url.Values, error) {
	if q.query == nil {
		v, err := url.ParseQuery(q.r.URL.RawQuery)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the query of the URL cannot be read: %v", err))
		}
		q.query = v
	}
	return q.query, nil
}

// longRunning requests have no time limit and take no slot.
func (q *request) longRunning() bool {
	if !q.info.IsResourceRequest {
		return false
	}
	switch q.info.Subresource {
	case "log", "exec", "attach", "portforward", "proxy":
		return true
	}
	return q.info.Verb == "watch"
}

func (q *request) audit() error {
	h := q.w.Header()
	id := q.r.Header.Get("Audit-Id")
	if id == "" || len(id) > 64 {
		id = string(uuid.NewUUID())
	}
	h["Audit-Id"] = []string{id}
	h["Cache-Control"] = noCache
	return nil
}

var noCache = []string{"no-cache, private"}

func (q *request) parse() error {
	q.info = ParseRequest(q.r)
	return nil
}

func (q *request) authenticate() error {
	who, ok, err := q.h.cfg.Authenticator.Authenticate(q.r)
	if err != nil {
		q.h.log.Info("unable to authenticate the request", "path", q.r.URL.Path, "remote", q.r.RemoteAddr, "err", err)
	}
	if err != nil || !ok {
		return apierrors.NewUnauthorized("Unauthorized")
	}
	// What comes behind must not see (nor pass on) the credentials.
	q.r.Header.Del("Authorization")
	q.user = who
	return nil
}

// limit takes a slot, so that a burst of requests does not take the machine. The
// administrators' group is let through: it must be able to help.
func (q *request) limit() error {
	if q.longRunning() || isHealth(q.info.Path) {
		return nil
	}
	slots := q.h.mutating
	switch q.info.Verb {
	case "get", "list", "watch", "head", "options":
		slots = q.h.reading
	}
	if slots == nil {
		return nil
	}
	select {
	case slots <- struct{}{}:
		q.slot = slots
		return nil
	default:
	}
	for _, g := range q.user.GetGroups() {
		if g == user.SystemPrivilegedGroup {
			return nil
		}
	}
	q.h.metrics.dropped(q.info.Verb)
	return apierrors.NewTooManyRequests("Too many requests, please try again later.", 1)
}

// isHealth reports whether a path says how the server is: a busy server lives.
func isHealth(path string) bool {
	for _, p := range []string{"/livez", "/readyz", "/healthz"} {
		if rest, ok := strings.CutPrefix(path, p); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

func (q *request) attributes() auth.Attributes {
	i := &q.info
	if !i.IsResourceRequest {
		return auth.Attributes{User: q.user, Verb: i.Verb, Path: i.Path}
	}
	return auth.Attributes{
		User: q.user, Verb: i.Verb, Namespace: i.Namespace, APIGroup: i.Group, APIVersion: i.Version,
		Resource: i.Resource, Subresource: i.Subresource, Name: i.AuthorizedName(), ResourceRequest: true, Path: i.Path,
	}
}

func (q *request) authorize() error {
	a := q.attributes()
	if err := q.allowed(a); err != nil {
		return err
	}
	// A WebSocket begins with a GET; what it does to a pod needs create (KEP-4006).
	if a.Verb == "get" && a.Resource == "pods" && a.APIGroup == "" && isWebSocket(q.r) {
		switch a.Subresource {
		case "exec", "attach", "portforward":
			a.Verb = "create"
			return q.allowed(a)
		}
	}
	return nil
}

func (q *request) allowed(a auth.Attributes) error {
	ok, reason, err := q.h.cfg.Authorizer.Authorize(q.ctx, a)
	if err != nil && !ok {
		return apierrors.NewInternalError(fmt.Errorf("authorize %s of %s: %w", a.Verb, a.Path, err))
	}
	if !ok {
		return Forbidden(a, reason)
	}
	return nil
}

// Forbidden is the answer to who may not do what a describes.
func Forbidden(a auth.Attributes, reason string) *apierrors.StatusError {
	gr := schema.GroupResource{Group: a.APIGroup, Resource: a.Resource}
	var msg string
	if !a.ResourceRequest {
		gr = schema.GroupResource{}
		msg = fmt.Sprintf("User %q cannot %s path %q", a.User.GetName(), a.Verb, a.Path)
		if reason != "" {
			msg += ": " + reason
		}
		return apierrors.NewForbidden(gr, "", errors.New(msg))
	}
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	msg = fmt.Sprintf("User %q cannot %s resource %q in API group %q", a.User.GetName(), a.Verb, resource, a.APIGroup)
	if a.Namespace != "" {
		msg += fmt.Sprintf(" in the namespace %q", a.Namespace)
	} else {
		msg += " at the cluster scope"
	}
	if reason != "" {
		msg += ": " + reason
	}
	return apierrors.NewForbidden(gr, a.Name, errors.New(msg))
}

// deadline bounds the request in time and makes its context.
func (q *request) deadline() error {
	ctx := rest.WithUser(q.ctx, q.user)
	if q.info.IsResourceRequest {
		ctx = rest.WithFieldManager(ctx, rest.FieldManagerOf(q.r.UserAgent()))
		ctx = rest.WithWarnings(ctx, q.warn)
	}
	if q.longRunning() {
		ctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(q.h.draining, cancel)
		q.ctx = ctx
		q.cancel = func() { stop(); cancel() }
		return nil
	}
	limit := q.h.cfg.Timeout
	if strings.Contains(q.r.URL.RawQuery, "timeout=") {
		values, err := q.values()
		if err != nil {
			return err
		}
		if s := values.Get("timeout"); s != "" {
			d, err := time.ParseDuration(s)
			if err != nil {
				return apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL - %v", err))
			}
			if d > 0 && d < limit {
				limit = d
			}
		}
	}
	q.ctx, q.cancel = context.WithTimeout(ctx, limit)
	if q.r.ContentLength != 0 {
		_ = http.NewResponseController(q.w.ResponseWriter).SetReadDeadline(time.Now().Add(limit))
	}
	return nil
}

func (q *request) warn(text string) {
	for _, have := range q.warned {
		if have == text {
			return
		}
	}
	q.warned = append(q.warned, text)
}

// maxWarnings bounds the bytes of all warnings: clients bound their headers.
const maxWarnings = 4 << 10

func (q *request) writeWarnings() {
	left := maxWarnings
	for _, text := range q.warned {
		text = strings.Map(printable, text)
		if len(text) > left {
			return
		}
		left -= len(text)
		q.w.Header().Add("Warning", "299 - "+quoted(text))
	}
	q.warned = nil
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

// quoted writes a quoted-string of RFC 9110 5.6.4.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

// body reads the whole body, up to the limit.
func (q *request) body() ([]byte, error) {
	limit := q.h.cfg.MaxBody
	n := q.r.ContentLength
	if n > limit {
		return nil, tooLarge(limit)
	}
	if n == 0 || q.r.Body == nil {
		return nil, nil
	}
	var data []byte
	var err error
	if n > 0 {
		data = make([]byte, n)
		_, err = io.ReadFull(q.r.Body, data)
	} else {
		data, err = io.ReadAll(io.LimitReader(q.r.Body, limit+1))
		if int64(len(data)) > limit {
			return nil, tooLarge(limit)
		}
	}
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, apierrors.NewBadRequest("unexpected end of the request's body")
		}
		return nil, apierrors.NewBadRequest(fmt.Sprintf("cannot read the request's body: %v", err))
	}
	return data, nil
}

func tooLarge(limit int64) error {
	return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", limit))
}

// fail answers with an error.
func (q *request) fail(err error) {
	status := StatusOf(err)
	if status.Code >= 500 && status.Code != http.StatusServiceUnavailable && status.Code != http.StatusGatewayTimeout {
		q.h.log.Error("request failed", "method", q.r.Method, "path", q.r.URL.Path, "code", status.Code, "err", err)
	}
	if q.w.hijacked || q.w.code != 0 {
		return // too late to say so
	}
	if d := status.Details; d != nil && d.RetryAfterSeconds > 0 {
		q.w.Header().Set("Retry-After", strconv.Itoa(int(d.RetryAfterSeconds)))
	}
	form, ferr := q.negotiate(formOptions{})
	if ferr != nil {
		form = form0
	}
	form.as = ""
	q.writeObject(form, int(status.Code), status, statusKind)
}

var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

// StatusOf is the Status that an error is answered with.
func StatusOf(err error) *metav1.Status {
	var known apierrors.APIStatus
	var status metav1.Status
	switch {
	case errors.As(err, &known):
		status = known.Status()
	case errors.Is(err, context.DeadlineExceeded):
		status = apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0).ErrStatus
	case errors.Is(err, context.Canceled):
		status = apierrors.NewTimeoutError("request was canceled", 0).ErrStatus
	default:
		status = apierrors.NewInternalError(err).ErrStatus
	}
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
	}
	return &status
}

func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && headerHas(r.Header, "Connection", "upgrade")
}

// headerHas reports whether a comma-separated header names token.
func headerHas(h http.Header, name, token string) bool {
	for _, line := range h.Values(name) {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}
