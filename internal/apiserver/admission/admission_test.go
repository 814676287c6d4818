package admission

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

type state map[string]api.Object

func (s state) Get(gvr schema.GroupVersionResource, ns, name string) (api.Object, bool) {
	o, ok := s[gvr.Resource+"/"+ns+"/"+name]
	return o, ok
}

func (s state) List(gvr schema.GroupVersionResource, ns string) []api.Object {
	var out []api.Object
	for k, o := range s {
		if strings.HasPrefix(k, gvr.Resource+"/") && (ns == "" || o.GetNamespace() == ns) {
			out = append(out, o)
		}
	}
	return out
}

func write(verb rest.Verb, gvr schema.GroupVersionResource, kind string, obj api.Object) *rest.Attributes {
	a := &rest.Attributes{Verb: verb, Resource: &api.Resource{GVR: gvr, GVK: gvr.GroupVersion().WithKind(kind), Namespaced: obj.GetNamespace() != ""},
		Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if verb == rest.Delete {
		a.Old = obj
	} else {
		a.Object = obj
	}
	return a
}

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func pod(containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta("shop", "web"), Spec: corev1.PodSpec{Containers: containers}}
}

func TestAPodGetsWhatItsSurroundingsSay(t *testing.T) {
	s := state{
		"namespaces//shop":          &corev1.Namespace{ObjectMeta: meta("", "shop")},
		"serviceaccounts/shop/web":  &corev1.ServiceAccount{ObjectMeta: meta("shop", "web"), ImagePullSecrets: []corev1.LocalObjectReference{{Name: "reg"}}},
		"priorityclasses//high":     &schedulingv1.PriorityClass{ObjectMeta: meta("", "high"), Value: 1000},
		"limitranges/shop/defaults": &corev1.LimitRange{ObjectMeta: meta("shop", "defaults"), Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer, DefaultRequest: corev1.ResourceList{"cpu": resource.MustParse("100m")}}}}},
	}
	p := pod(corev1.Container{Name: "c"})
	p.Spec.ServiceAccountName = "web"
	p.Spec.PriorityClassName = "high"
	chain := Default(s, NewAddresses(s, netip.MustParsePrefix("10.96.0.0/16"), 30000, 32767, time.Now))
	if err := chain.Admit(t.Context(), write(rest.Create, podsGVR, "Pod", p)); err != nil {
		t.Fatal(err)
	}
	if err := chain.Validate(t.Context(), write(rest.Create, podsGVR, "Pod", p)); err != nil {
		t.Fatal(err)
	}
	c := p.Spec.Containers[0]
	if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].MountPath != tokenMountPath || len(p.Spec.Volumes) != 1 {
		t.Errorf("token mount: %v, volumes %v", c.VolumeMounts, p.Spec.Volumes)
	}
	if *p.Spec.Priority != 1000 || len(p.Spec.Tolerations) != 2 || p.Spec.ImagePullSecrets[0].Name != "reg" {
		t.Errorf("priority %v, tolerations %v, pull secrets %v", *p.Spec.Priority, p.Spec.Tolerations, p.Spec.ImagePullSecrets)
	}
	if q := c.Resources.Requests["cpu"]; q.String() != "100m" {
		t.Errorf("cpu request %s", q.String())
	}
}

func TestRefusals(t *testing.T) {
	now := metav1.Now()
	s := state{
		"namespaces//shop":          &corev1.Namespace{ObjectMeta: meta("", "shop")},
		"namespaces//going":         &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "going", DeletionTimestamp: &now}},
		"priorityclasses//standard": &schedulingv1.PriorityClass{ObjectMeta: meta("", "standard"), GlobalDefault: true},
		"serviceaccounts/shop/web":  &corev1.ServiceAccount{ObjectMeta: meta("shop", "web")},
		"limitranges/shop/bounds":   &corev1.LimitRange{ObjectMeta: meta("shop", "bounds"), Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer, Max: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}}}},
	}
	chain := Default(s, NewAddresses(s, netip.MustParsePrefix("10.96.0.0/16"), 30000, 32767, time.Now))
	big := pod(corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": resource.MustParse("2Gi")}}})
	big.Spec.ServiceAccountName = "web"
	unknown := pod(corev1.Container{Name: "c"})
	unknown.Spec.PriorityClassName = "none"
	configMaps := corev1.SchemeGroupVersion.WithResource("configmaps")
	for name, c := range map[string]struct {
		a    *rest.Attributes
		want string
	}{
		"no such namespace":           {write(rest.Create, configMaps, "ConfigMap", &corev1.ConfigMap{ObjectMeta: meta("nowhere", "x")}), `namespaces "nowhere" not found`},
		"a namespace in deletion":     {write(rest.Create, configMaps, "ConfigMap", &corev1.ConfigMap{ObjectMeta: meta("going", "x")}), `configmaps "x" is forbidden: unable to create new content in namespace going because it is being terminated`},
		"deletion of kube-system":     {write(rest.Delete, namespacesGVR, "Namespace", &corev1.Namespace{ObjectMeta: meta("", "kube-system")}), `namespaces "kube-system" is forbidden: this namespace may not be deleted`},
		"over a limit range":          {write(rest.Create, podsGVR, "Pod", big), `pods "web" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi`},
		"an unknown service account":  {write(rest.Create, podsGVR, "Pod", pod(corev1.Container{Name: "c"})), `pods "web" is forbidden: error looking up service account shop/default: serviceaccount "default" not found`},
		"a second default priority":   {write(rest.Create, priorityClassesGVR, "PriorityClass", &schedulingv1.PriorityClass{ObjectMeta: meta("", "two"), GlobalDefault: true}), `priorityclasses.scheduling.k8s.io "two" is forbidden: PriorityClass standard is already marked as default. Only one default can exist`},
		"node port out of the range":  {write(rest.Create, servicesGVR, "Service", service("a", corev1.ServiceTypeNodePort, 80, 22)), `Service "a" is invalid: spec.ports[0].nodePort: Invalid value: 22: provided port is not in the valid range. The range of valid ports is 30000-32767`},
		"cluster IP out of the range": {write(rest.Create, servicesGVR, "Service", withIP(service("a", corev1.ServiceTypeClusterIP, 80, 0), "192.0.2.7")), `Service "a" is invalid: spec.clusterIPs[0]: Invalid value: ["192.0.2.7"]: failed to allocate IP 192.0.2.7: the provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16`},
	} {
		t.Run(name, func(t *testing.T) {
			err := chain.Admit(t.Context(), c.a)
			if err == nil {
				err = chain.Validate(t.Context(), c.a)
			}
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
	if err := (Priority{s}).Admit(t.Context(), write(rest.Create, podsGVR, "Pod", unknown)); err == nil || !strings.Contains(err.Error(), "no PriorityClass with name none was found") {
		t.Errorf("unknown priority class: %v", err)
	}
}

func service(name string, kind corev1.ServiceType, port, nodePort int32) *corev1.Service {
	return &corev1.Service{ObjectMeta: meta("shop", name), Spec: corev1.ServiceSpec{Type: kind,
		Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: port, NodePort: nodePort}}}}
}

func withIP(s *corev1.Service, ip string) *corev1.Service {
	s.Spec.ClusterIP, s.Spec.ClusterIPs = ip, []string{ip}
	return s
}

// A18: cluster IPs and node ports are unique and none leaks.
func TestAddressesAreUniqueAndComeBack(t *testing.T) {
	s := state{}
	now := time.Now()
	a := NewAddresses(s, netip.MustParsePrefix("10.96.0.0/28"), 30000, 30003, func() time.Time { return now })
	create := func(name string, kind corev1.ServiceType) (*corev1.Service, error) {
		svc := service(name, kind, 80, 0)
		return svc, a.AdmitLast(t.Context(), write(rest.Create, servicesGVR, "Service", svc))
	}
	seen := map[string]bool{}
	for i := range 14 { // /28 less network and broadcast
		svc, err := create(string(rune('a'+i)), corev1.ServiceTypeClusterIP)
		if err != nil {
			t.Fatalf("service %d: %v", i, err)
		}
		if seen[svc.Spec.ClusterIP] {
			t.Fatalf("%s was given twice", svc.Spec.ClusterIP)
		}
		seen[svc.Spec.ClusterIP] = true
	}
	if _, err := create("full", corev1.ServiceTypeClusterIP); err == nil {
		t.Fatal("an address was given from a full range")
	}
	// None of these writes reached the store: their addresses come back.
	now = now.Add(2 * pendingFor)
	for i := range 4 {
		svc, err := create("np"+string(rune('a'+i)), corev1.ServiceTypeNodePort)
		if err != nil {
			t.Fatal(err)
		}
		s["services/shop/"+svc.Name] = svc
	}
	now = now.Add(2 * pendingFor)
	if _, err := create("np-full", corev1.ServiceTypeNodePort); err == nil {
		t.Fatal("a node port was given from a full range")
	}
	// An update that does not mention what was allocated keeps it.
	old := s["services/shop/npa"].(*corev1.Service)
	upd := service("npa", corev1.ServiceTypeNodePort, 80, 0)
	attrs := write(rest.Update, servicesGVR, "Service", upd)
	attrs.Old = old
	if err := a.AdmitLast(t.Context(), attrs); err != nil || upd.Spec.ClusterIP != old.Spec.ClusterIP || upd.Spec.Ports[0].NodePort != old.Spec.Ports[0].NodePort {
		t.Errorf("update: %v, %+v", err, upd.Spec)
	}
	// A16: a dry run takes nothing.
	delete(s, "services/shop/npb")
	for range 2 {
		dry := write(rest.Create, servicesGVR, "Service", service("dry", corev1.ServiceTypeNodePort, 80, 0))
		dry.DryRun = true
		if err := a.AdmitLast(t.Context(), dry); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.ports) != 0 {
		t.Errorf("a dry run holds ports %v", a.ports)
	}
}
