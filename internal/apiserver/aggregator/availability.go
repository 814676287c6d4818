package aggregator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

const (
	checkTimeout  = 5 * time.Second
	checkInterval = 30 * time.Second
	retryFirst    = time.Second
	// checkPause keeps a Service whose endpoints change all the time from being
	// asked all the time.
	checkPause = 100 * time.Millisecond
	maxAnswer  = 16 << 20
)

// check has the server checked soon.
func (s *service) check() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

// run checks the server when something changed and every now and then, until ctx
// or the service ends.
func (s *service) run(ctx context.Context) {
	defer s.transport.CloseIdleConnections()
	defer s.upgrades.CloseIdleConnections()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	defer s.a.metrics.forget(s.name)
	wait := retryFirst
	for {
		condition := s.look(ctx)
		if ctx.Err() != nil {
			return
		}
		ok := condition.Status == apiregistrationv1.ConditionTrue
		changed, described := s.available.Swap(ok) != ok, ok && s.describe(ctx)
		if changed || described {
			s.a.list()
		}
		if changed {
			s.a.log.Info("availability of an API", "kind", "APIService", "name", s.name, "available", ok, "reason", condition.Reason, "message", condition.Message)
		}
		s.a.metrics.set(s.name, ok, condition.Reason)
		if err := s.write(ctx, condition); err != nil && ctx.Err() == nil {
			s.a.log.Warn("write the status of an APIService", "kind", "APIService", "name", s.name, "err", err)
		}
		if ok {
			wait = checkInterval
		} else if wait = min(2*wait, checkInterval); condition.Reason != "FailedDiscoveryCheck" {
			wait = checkInterval // what it waits for is an event
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wanted:
			wait = retryFirst
			select {
			case <-ctx.Done():
				return
			case <-time.After(checkPause):
			}
		case <-time.After(wait):
		}
	}
}

func no(reason, format string, args ...any) apiregistrationv1.APIServiceCondition {
	return apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionFalse, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// look says whether the server is there. The reasons are Kubernetes'.
func (s *service) look(ctx context.Context) apiregistrationv1.APIServiceCondition {
	ref := s.spec.Service
	obj, ok := s.a.cfg.Reader.Get(servicesGVR, ref.Namespace, ref.Name)
	if !ok {
		return no("ServiceNotFound", "service/%s in %q is not present", ref.Name, ref.Namespace)
	}
	svc := obj.(*corev1.Service)
	if svc.Spec.Type != corev1.ServiceTypeExternalName {
		var port *corev1.ServicePort
		for i := range svc.Spec.Ports {
			if svc.Spec.Ports[i].Port == s.port() {
				port = &svc.Spec.Ports[i]
			}
		}
		if port == nil {
			return no("ServicePortError", "service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, s.port())
		}
		slices, ready := 0, false
		for _, o := range s.a.cfg.Reader.List(slicesGVR, ref.Namespace) {
			if slice, ok := o.(*discoveryv1.EndpointSlice); ok && slice.Labels[discoveryv1.LabelServiceName] == ref.Name {
				slices++
				ready = ready || serves(slice, port.Name)
			}
		}
		switch {
		case slices == 0 && len(svc.Spec.Selector) > 0:
			return no("EndpointsNotFound", "cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace)
		case !ready && (slices > 0 || len(svc.Spec.Selector) > 0):
			return no("MissingEndpoints", "endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, port.Name)
		}
	}
	path := "/apis/" + s.gv.String()
	where := s.base.String() + path
	status, _, body, err := s.get(ctx, path, "application/json", maxAnswer)
	if err == nil && (status < 200 || status > 299) {
		err = fmt.Errorf("bad status from %s: %d", where, status)
	}
	if err != nil {
		return no("FailedDiscoveryCheck", "failing or missing response from %s: %v", where, err)
	}
	s.learn(body)
	return apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, Reason: "Passed", Message: "all checks passed"}
}

// serves reports whether a slice has a ready endpoint for a port of the Service.
func serves(slice *discoveryv1.EndpointSlice, port string) bool {
	found := false
	for _, p := range slice.Ports {
		found = found || p.Name == nil && port == "" || p.Name != nil && *p.Name == port
	}
	if !found {
		return false
	}
	for _, e := range slice.Endpoints {
		if (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
			return true
		}
	}
	return false
}

// learn keeps what the server says it serves, for discovery.
func (s *service) learn(body []byte) {
	var list metav1.APIResourceList
	if err := json.Unmarshal(body, &list); err != nil || list.Kind != "APIResourceList" {
		return // it may serve all the same
	}
	resources := resourcesOf(&list, s.gv)
	if old := s.resources.Load(); old != nil && equal(*old, resources) {
		return
	}
	s.resources.Store(&resources)
	if s.available.Load() { // otherwise it is listed when it becomes so
		s.a.list()
	}
}

func equal(a, b []apidiscoveryv2.APIResourceDiscovery) bool {
	x, errx := json.Marshal(a)
	y, erry := json.Marshal(b)
	return errx == nil && erry == nil && string(x) == string(y)
}

// write writes the condition into the APIService's status, if it changed.
func (s *service) write(ctx context.Context, now apiregistrationv1.APIServiceCondition) error {
	e, ok := s.a.cache.Get(s.a.cache.Key("", s.name))
	if !ok {
		return nil
	}
	if same(e.Object().(*apiregistrationv1.APIService), now) {
		return nil
	}
	who := &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	ctx = rest.WithFieldManager(rest.WithUser(ctx, who), "kube-apiserver")
	_, _, err := s.a.store.Update(ctx, "", s.name, "status", func(_ context.Context, old api.Object) (api.Object, error) {
		o := old.(*apiregistrationv1.APIService)
		if o.UID != s.uid {
			return nil, apierrors.NewNotFound(schema.GroupResource{Group: apiServicesGVR.Group, Resource: apiServicesGVR.Resource}, s.name)
		}
		set(o, now)
		return o, nil
	}, rest.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func same(o *apiregistrationv1.APIService, now apiregistrationv1.APIServiceCondition) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == now.Type {
			return c.Status == now.Status && c.Reason == now.Reason && c.Message == now.Message
		}
	}
	return false
}

func set(o *apiregistrationv1.APIService, now apiregistrationv1.APIServiceCondition) {
	now.LastTransitionTime = metav1.Now()
	for i := range o.Status.Conditions {
		if c := &o.Status.Conditions[i]; c.Type == now.Type {
			if c.Status == now.Status {
				now.LastTransitionTime = c.LastTransitionTime
			}
			*c = now
			return
		}
	}
	o.Status.Conditions = append(o.Status.Conditions, now)
}

func readAtMost(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("the answer is larger than %d bytes", most)
	}
	return b, err
}
