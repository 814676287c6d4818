package endpoint

import (
	"net/url"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// connectOptions are the options of a connection, as admission sees them.
func connectOptions(i *RequestInfo, q url.Values) runtime.Object {
	flag := func(name string) bool {
		v, ok := q[name]
		if !ok || len(v) == 0 {
			return false
		}
		b, err := strconv.ParseBool(v[0])
		return err == nil && b || v[0] == ""
	}
	switch i.Resource + "/" + i.Subresource {
	case "pods/exec":
		return &corev1.PodExecOptions{Stdin: flag("stdin"), Stdout: flag("stdout"), Stderr: flag("stderr"), TTY: flag("tty"), Container: q.Get("container"), Command: q["command"]}
	case "pods/attach":
		return &corev1.PodAttachOptions{Stdin: flag("stdin"), Stdout: flag("stdout"), Stderr: flag("stderr"), TTY: flag("tty"), Container: q.Get("container")}
	case "pods/portforward":
		o := &corev1.PodPortForwardOptions{}
		for _, p := range q["ports"] {
			if n, err := strconv.ParseInt(p, 10, 32); err == nil {
				o.Ports = append(o.Ports, int32(n))
			}
		}
		return o
	case "pods/proxy":
		return &corev1.PodProxyOptions{Path: i.Rest}
	case "services/proxy":
		return &corev1.ServiceProxyOptions{Path: i.Rest}
	case "nodes/proxy":
		return &corev1.NodeProxyOptions{Path: i.Rest}
	}
	return nil
}
