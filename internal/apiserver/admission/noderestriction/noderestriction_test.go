package noderestriction

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

type state map[string]api.Object

func (s state) Get(gvr schema.GroupVersionResource, ns, name string) (api.Object, bool) {
	o, ok := s[gvr.Resource+"/"+ns+"/"+name]
	return o, ok
}

func on(node string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "pod"}, Spec: corev1.PodSpec{NodeName: node,
		Volumes: []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func mirror(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "static", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "node", Controller: ptr.To(true)}}}, Spec: corev1.PodSpec{NodeName: "n1"}}
	for _, f := range change {
		f(p)
	}
	return p
}

func node(labels map[string]string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node", Labels: labels}, Spec: corev1.NodeSpec{Taints: taints}}
}

func boundTo(uid, audience string) *authenticationv1.TokenRequest {
	tr := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "pod"}}}
	if uid == "" {
		tr.Spec.BoundObjectRef = nil
	}
	if audience != "" {
		tr.Spec.Audiences = []string{audience}
	}
	return tr
}

func TestANodeMayTouchOnlyItsOwn(t *testing.T) {
	s := state{"pods/shop/web": on("n1"), "nodes//n1": node(nil)}
	away := state{"pods/shop/web": on("n2"), "nodes//n1": node(nil)}
	write := func(resource, sub string, verb rest.Verb, obj runtime.Object, old api.Object, name string) *rest.Attributes {
		gv, resource, _ := strings.Cut(resource, ":")
		group, version, _ := strings.Cut(gv, "/")
		ns := "shop"
		if resource == "nodes" {
			ns = ""
		}
		return &rest.Attributes{Verb: verb, Resource: &api.Resource{GVR: schema.GroupVersionResource{Group: group, Version: version, Resource: resource}}, Subresource: sub, Namespace: ns, Name: name, Object: obj, Old: old}
	}
	lease := func(ns, name string) *rest.Attributes {
		a := write("coordination.k8s.io/v1:leases", "", rest.Create, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil, "")
		a.Namespace = ns
		return a
	}
	for _, x := range []struct {
		name  string
		state state
		a     *rest.Attributes
		want  string // a part of the error; "": none
	}{
		{"its pod's status", s, write("/v1:pods", "status", rest.Update, on("n1"), on("n1"), "web"), ""},
		{"another's pod's status", s, write("/v1:pods", "status", rest.Update, on("n2"), on("n2"), "web"), `node "n1" can only update pod status for pods with spec.nodeName set to itself`},
		{"labels through the status", s, write("/v1:pods", "status", rest.Update, on("n1", func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }), on("n1"), "web"), "cannot update labels through pod status"},
		{"deletion of its pod", s, write("/v1:pods", "", rest.Delete, nil, on("n1"), "web"), ""},
		{"deletion of another's pod", s, write("/v1:pods", "", rest.Delete, nil, on("n2"), "web"), "can only delete pods with spec.nodeName set to itself"},
		{"a pod's spec", s, write("/v1:pods", "", rest.Update, on("n1"), on("n1"), "web"), "can only create and delete mirror pods"},
		{"a binding", s, write("/v1:pods", "binding", rest.Create, &corev1.Binding{}, nil, "web"), "unexpected pod subresource"},
		{"an eviction", s, write("/v1:pods", "eviction", rest.Create, &policyv1.Eviction{}, nil, "web"), ""},
		{"another's eviction", away, write("/v1:pods", "eviction", rest.Create, &policyv1.Eviction{}, nil, "web"), "node n1 can only evict pods"},
		{"a mirror pod", s, write("/v1:pods", "", rest.Create, mirror(), nil, "static"), ""},
		{"an ordinary pod", s, write("/v1:pods", "", rest.Create, on("n1"), nil, "web"), "can only create mirror pods"},
		{"a mirror pod of another node", s, write("/v1:pods", "", rest.Create, mirror(func(p *corev1.Pod) { p.Spec.NodeName = "n2" }), nil, "static"), "spec.nodeName set to itself"},
		{"a mirror pod with a secret", s, write("/v1:pods", "", rest.Create, mirror(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}}}
		}), nil, "static"), "can not create pods that reference secrets (via secret volumes)"},
		{"a mirror pod of a node of before", s, write("/v1:pods", "", rest.Create, mirror(func(p *corev1.Pod) { p.OwnerReferences[0].UID = "old" }), nil, "static"), "UID mismatch"},
		{"itself", s, write("/v1:nodes", "", rest.Create, node(map[string]string{corev1.LabelHostname: "n1", "node.kubernetes.io/x": "y", "own": "z"}), nil, "n1"), ""},
		{"itself as a control plane", s, write("/v1:nodes", "", rest.Create, node(map[string]string{"node-role.kubernetes.io/control-plane": ""}), nil, "n1"), "is not allowed to set the following labels: node-role.kubernetes.io/control-plane"},
		{"a restricted label", s, write("/v1:nodes", "", rest.Update, node(map[string]string{"x.node-restriction.kubernetes.io/a": "b"}), node(nil), "n1"), "is not allowed to modify labels: x.node-restriction.kubernetes.io/a"},
		{"its taints", s, write("/v1:nodes", "", rest.Update, node(nil), node(nil, corev1.Taint{Key: "k", Effect: "NoSchedule"}), "n1"), "is not allowed to modify taints"},
		{"another node", s, write("/v1:nodes", "status", rest.Update, node(nil), node(nil), "n2"), `node "n1" is not allowed to modify node "n2"`},
		{"a token of its pod", s, write("/v1:serviceaccounts", "token", rest.Create, boundTo("pod", ""), nil, "default"), ""},
		{"a token without a pod", s, write("/v1:serviceaccounts", "token", rest.Create, boundTo("", ""), nil, "default"), "node requested token not bound to a pod"},
		{"a token of another's pod", away, write("/v1:serviceaccounts", "token", rest.Create, boundTo("pod", ""), nil, "default"), "bound to a pod scheduled on a different node"},
		{"a token for another audience", s, write("/v1:serviceaccounts", "token", rest.Create, boundTo("pod", "vault"), nil, "default"), `is not authorized to request tokens for audience "vault"`},
		{"its lease", s, lease("kube-node-lease", "n1"), ""},
		{"another's lease", s, lease("kube-node-lease", "n2"), "can only access node lease with the same name as the requesting node"},
		{"a lease elsewhere", s, lease("default", "n1"), "can only access leases in the"},
		{"what is not a node's business", s, write("/v1:configmaps", "", rest.Create, &corev1.ConfigMap{}, nil, "m"), ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.a.User = &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup}}
			err := Plugin{Reader: x.state}.Admit(t.Context(), x.a)
			if (x.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, want %q", err, x.want)
			}
			x.a.User = &user.DefaultInfo{Name: "system:node:n1"} // by its name alone nobody is a node
			if err := (Plugin{Reader: x.state}).Admit(t.Context(), x.a); err != nil {
				t.Errorf("another user: %v", err)
			}
		})
	}
}
