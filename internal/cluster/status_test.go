package cluster

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/cluster/instance"
)

func TestStatusSaysWhatIsWrong(t *testing.T) {
	node := func(status corev1.ConditionStatus, message string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Message: message}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}}
	}
	for name, c := range map[string]struct {
		nodes []*corev1.Node
		want  string
	}{
		"all is well":          {[]*corev1.Node{node(corev1.ConditionTrue, "kubelet is posting ready status")}, ""},
		"no node":              {nil, "no node has registered"},
		"a node is not ready":  {[]*corev1.Node{node(corev1.ConditionTrue, ""), node(corev1.ConditionFalse, "the disk is full")}, "node n is not ready: the disk is full"},
		"a node without words": {[]*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n"}}}, "not reported yet"},
	} {
		t.Run(name, func(t *testing.T) {
			var s Status
			for _, n := range c.nodes {
				s.Nodes = append(s.Nodes, describe(n))
			}
			err := s.judge()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("judge = %v, want %q", err, c.want)
			}
			if c.want == "" && (s.Nodes[0].Address != "192.0.2.1" || s.Nodes[0].Reason != "") {
				t.Errorf("%+v", s.Nodes[0])
			}
		})
	}
}

func TestLookAtAClusterThatStarts(t *testing.T) {
	data := t.TempDir()
	release, err := instance.Acquire(data, instance.Info{Version: "v"})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	s, err := Look(t.Context(), data)
	if err != nil || s.Problem != "it is starting" || s.Version != "v" {
		t.Errorf("%+v, %v", s, err)
	}
}
