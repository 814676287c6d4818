package scheduler

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func testNode(name, cpu string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse("10")}}}
	for _, c := range change {
		c(n)
	}
	return n
}

func testPod(name, cpu string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "a"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)}}}}}}
	for _, c := range change {
		c(p)
	}
	return p
}

func TestARefusalIsWordedAsKubeSchedulerDoes(t *testing.T) {
	taint := func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
	}
	cordon := func(n *corev1.Node) { n.Spec.Unschedulable = true }
	selector := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }
	for name, c := range map[string]struct {
		nodes []*corev1.Node
		pod   *corev1.Pod
		want  string
	}{
		"no node": {nil, testPod("p", "1"), "no nodes available to schedule pods"},
		"too little": {[]*corev1.Node{testNode("a", "1")}, testPod("p", "2"),
			"0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
		"tainted and small": {[]*corev1.Node{testNode("a", "4", taint), testNode("b", "1")}, testPod("p", "2"),
			"0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."},
		"cordoned": {[]*corev1.Node{testNode("a", "4", cordon)}, testPod("p", "1"),
			"0/1 nodes are available: 1 node(s) were unschedulable. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		"another label": {[]*corev1.Node{testNode("a", "4")}, testPod("p", "1", selector),
			"0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState()
			for _, n := range c.nodes {
				s.setNode(n)
			}
			node, r := newClasses(1).place(s, c.pod)
			if node != "" || r.String() != c.want {
				t.Errorf("got %q %s\nwant    %s", node, r, c.want)
			}
		})
	}
}

// B2: what is bound never exceeds what a node has, and pods of one shape spread.
func TestPodsFillNodesEvenlyAndNeverTooFull(t *testing.T) {
	s, c := newState(), newClasses(7)
	for i := range 3 {
		s.setNode(testNode(fmt.Sprint("n", i), "2"))
	}
	count := map[string]int{}
	for i := range 6 {
		p := testPod(fmt.Sprint("p", i), "1")
		node, r := c.place(s, p)
		if node == "" {
			t.Fatalf("pod %d: %s", i, r)
		}
		s.assume(p, node)
		count[node]++
	}
	for n, k := range count {
		if k != 2 {
			t.Errorf("%s has %d pods, want 2", n, k)
		}
	}
	last := testPod("last", "1")
	if node, _ := c.place(s, last); node != "" {
		t.Errorf("a seventh pod went to %s", node)
	}
	s.removePod("p0")
	if node, r := c.place(s, last); node == "" {
		t.Errorf("after a pod left: %s", r)
	}
	// A node that is gone takes nothing; one that takes its place starts empty.
	s.removeNode("n1")
	s.setNode(testNode("n9", "2"))
	if i := s.index["n9"]; s.nodes[i].used.cpu != 0 || len(s.nodes[i].pods) != 0 {
		t.Errorf("a new node has %+v", s.nodes[i].used)
	}
}

// B3: required anti-affinity holds for the new pod and for those already placed.
func TestAntiAffinityHoldsBothWays(t *testing.T) {
	anti := func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			TopologyKey: "kubernetes.io/hostname", LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}}}}
	}
	s, c := newState(), newClasses(3)
	s.setNode(testNode("a", "8"))
	s.setNode(testNode("b", "8"))
	first := testPod("first", "1", anti)
	node, _ := c.place(s, first)
	s.assume(first, node)
	second := testPod("second", "1", anti)
	other, r := c.place(s, second)
	if other == "" || other == node {
		t.Fatalf("second pod: %q beside %q (%v)", other, node, r)
	}
	s.assume(second, other)
	if got, _ := c.place(s, testPod("third", "1")); got != "" {
		t.Errorf("a pod without terms was put beside one that bans it, on %s", got)
	}
}

func TestTheQueueTriesByPriorityAndBacksOff(t *testing.T) {
	now := time.Now()
	q := newQueue()
	high := int32(10)
	q.add(testPod("low", "1"), now)
	q.add(testPod("high", "1", func(p *corev1.Pod) { p.Spec.Priority = &high }), now)
	p, _ := q.pop(now)
	if p.Name != "high" {
		t.Fatalf("first is %s", p.Name)
	}
	q.park(p, []reason{reasonCPU}, now)
	if p, _ := q.pop(now); p.Name != "low" {
		t.Fatalf("then %s", p.Name)
	}
	q.retryAll(now)
	if p, wait := q.pop(now); p != nil || wait != firstBackoff {
		t.Fatalf("a refused pod is tried at once (%v), or after %s", p, wait)
	}
	if p, _ := q.pop(now.Add(firstBackoff)); p == nil || p.Name != "high" {
		t.Fatal("a refused pod is not tried after its back-off")
	}
	q.remove("high")
	q.remove("low")
	if len(q.items)+len(q.ready)+len(q.later) != 0 {
		t.Error("the queue keeps pods that are gone")
	}
}

// The decision for one pod of a known shape among many nodes.
func BenchmarkPlace(b *testing.B) {
	for _, nodes := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprint(nodes, "-nodes"), func(b *testing.B) {
			s, c := newState(), newClasses(1)
			for i := range nodes {
				s.setNode(testNode(fmt.Sprint("n", i), "1000000", func(n *corev1.Node) { n.Status.Allocatable["pods"] = resource.MustParse("1000000") }))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p := testPod(fmt.Sprint(i), "1m")
				node, r := c.place(s, p)
				if node == "" {
					b.Fatal(r)
				}
				s.assume(p, node)
			}
		})
	}
}
