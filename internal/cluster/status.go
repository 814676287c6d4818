package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/remote"
	"github.com/proa-dev/proa/internal/cluster/instance"
	"github.com/proa-dev/proa/internal/cluster/kubeconfig"
)

// Status is how a cluster is, as one sees it from outside its process.
type Status struct {
	instance.Info
	DataDir    string         `json:"dataDir"`
	Kubernetes string         `json:"kubernetes,omitempty"` // version that the server reports
	Nodes      []NodeStatus   `json:"nodes,omitempty"`
	Pods       map[string]int `json:"pods,omitempty"` // by phase
	ReadyPods  int            `json:"readyPods"`
	// Problem is what is wrong; "": nothing.
	Problem string `json:"problem,omitempty"`
}

// NodeStatus is a node in short.
type NodeStatus struct {
	Name    string `json:"name"`
	Ready   bool   `json:"ready"`
	Reason  string `json:"reason,omitempty"` // why it is not
	Address string `json:"address,omitempty"`
	Version string `json:"version"`
	Runtime string `json:"runtime"`
}

// statusTimeout bounds how long a server may take to answer.
const statusTimeout = 5 * time.Second

// Look returns the status of the cluster on a data folder. That none runs is an
// error (instance.ErrNone); that one is not well stands in Problem.
func Look(ctx context.Context, data string) (Status, error) {
	info, err := instance.Find(data)
	if err != nil {
		return Status{}, err
	}
	s := Status{Info: info, DataDir: data}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := s.ask(ctx); err != nil {
		s.Problem = err.Error()
	}
	return s, nil
}

// credentials are the administrator's, or for who cannot read them, those of the
// user's own kubeconfig.
func credentials(data string) (remote.Config, error) {
	cfg, err := remote.FromKubeconfig(Kubeconfig(data), "")
	if !errors.Is(err, fs.ErrPermission) {
		return cfg, err
	}
	own, ownErr := remote.FromKubeconfig(kubeconfig.Path(os.Getenv("KUBECONFIG"), kubeconfig.Invoker()), kubeconfig.Name)
	if ownErr != nil {
		return cfg, err
	}
	return own, nil
}

func (s *Status) ask(ctx context.Context) error {
	cfg, err := credentials(s.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("it is starting")
	}
	if err != nil {
		return err
	}
	c, err := remote.New(cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	b, err := c.Do(ctx, "/version")
	if err != nil {
		return fmt.Errorf("the API server does not answer: %w", err)
	}
	var v struct{ GitVersion string }
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("read the server's version: %w", err)
	}
	s.Kubernetes = v.GitVersion
	nodes, err := client.Nodes.List(ctx, c, "", metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	for _, n := range nodes {
		s.Nodes = append(s.Nodes, describe(n))
	}
	pods, err := client.Pods.List(ctx, c, "", metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the pods: %w", err)
	}
	s.count(pods)
	if _, err := c.Do(ctx, "/readyz"); err != nil {
		return fmt.Errorf("the API server is not ready: %w", err)
	}
	return s.judge()
}

func describe(n *corev1.Node) NodeStatus {
	out := NodeStatus{Name: n.Name, Version: n.Status.NodeInfo.KubeletVersion, Runtime: n.Status.NodeInfo.ContainerRuntimeVersion, Reason: "it has not reported yet"}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Ready, out.Reason = c.Status == corev1.ConditionTrue, c.Message
		}
	}
	if out.Ready {
		out.Reason = ""
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			out.Address = a.Address
			break
		}
	}
	return out
}

func (s *Status) count(pods []*corev1.Pod) {
	s.Pods = map[string]int{}
	for _, p := range pods {
		s.Pods[string(p.Status.Phase)]++
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				s.ReadyPods++
			}
		}
	}
}

func (s *Status) judge() error {
	if len(s.Nodes) == 0 {
		return errors.New("no node has registered yet")
	}
	for _, n := range s.Nodes {
		if !n.Ready {
			return fmt.Errorf("node %s is not ready: %s", n.Name, n.Reason)
		}
	}
	return nil
}
