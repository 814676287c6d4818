package daemonset

import (
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1helper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// generationLabel is what told the version of a pod before there were revisions;
// old clients still read it.
const generationLabel = "pod-template-generation"

// fit says where the pods of a set may run.
type fit struct {
	nodeName    string
	affinity    nodeaffinity.RequiredNodeAffinity
	tolerations []corev1.Toleration
}

func newFit(set *appsv1.DaemonSet) fit {
	spec := &set.Spec.Template.Spec
	return fit{nodeName: spec.NodeName, affinity: nodeaffinity.NewRequiredNodeAffinity(spec.NodeSelector, spec.Affinity), tolerations: tolerations(spec)}
}

// on reports whether a pod is to be on a node, and whether one that is there may
// stay: a taint that keeps new pods away does not send away those that run.
func (f fit) on(node *corev1.Node) (run, stay bool) {
	if node == nil || f.nodeName != "" && f.nodeName != node.Name {
		return false, false
	}
	if ok, _ := f.affinity.Match(node); !ok {
		return false, false
	}
	run = true
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || f.tolerates(t) {
			continue
		}
		if t.Effect == corev1.TaintEffectNoExecute {
			return false, false
		}
		run = false
	}
	return run, true
}

func (f fit) tolerates(t *corev1.Taint) bool {
	return v1helper.TolerationsTolerateTaint(klog.Logger{}, f.tolerations, t, false)
}

// tolerations are those of the template and those that every daemon has: a daemon
// stays on a node in trouble, and comes to one that is cordoned.
func tolerations(spec *corev1.PodSpec) []corev1.Toleration {
	out := slices.Clone(spec.Tolerations)
	add := func(key string, effect corev1.TaintEffect) {
		want := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		for i := range out {
			if want.MatchToleration(&out[i]) {
				if !apiequality.Semantic.DeepEqual(out[i], want) {
					out[i] = want
				}
				return
			}
		}
		out = append(out, want)
	}
	add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	if spec.HostNetwork {
		add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
	return out
}

// template is that of the pods to make.
func (p *pass) template() *corev1.PodTemplateSpec {
	t := p.set.Spec.Template.DeepCopy()
	t.Spec.Tolerations = p.fit.tolerations
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	if g, ok := generation(p.set); ok {
		t.Labels[generationLabel] = g
	}
	t.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = p.hash
	return t
}

func generation(set *appsv1.DaemonSet) (string, bool) {
	text := set.Annotations[appsv1.DeprecatedTemplateGeneration]
	_, err := strconv.ParseInt(text, 10, 64)
	return text, err == nil
}

// pinTo lets the scheduler bind a pod to one node only. The rest of the template's
// required node affinity has been checked, and gives way.
func pinTo(spec *corev1.PodSpec, node string) {
	if spec.Affinity == nil {
		spec.Affinity = &corev1.Affinity{}
	}
	if spec.Affinity.NodeAffinity == nil {
		spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}
}

// target is the node that a pod is on or for; "": none.
func target(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// ending says that an error is that of a namespace on its way out.
func ending(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
