package runtime

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels of the metrics: those of a container or pod, and of a network interface.
var (
	ownLabels     = []string{"id", "name", "image", "container", "pod", "namespace"}
	networkLabels = append(ownLabels[:len(ownLabels):len(ownLabels)], "interface")
)

// metric is one of cAdvisor's names for what is counted.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	value      func(*runtimeapi.ContainerStats) *runtimeapi.UInt64Value
}

var containerMetrics = []metric{
	{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", runtimeapi.MetricType_COUNTER,
		func(s *runtimeapi.ContainerStats) *runtimeapi.UInt64Value {
			return u64(s.Cpu.GetUsageCoreNanoSeconds().GetValue() / uint64(time.Second))
		}},
	{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", runtimeapi.MetricType_GAUGE,
		func(s *runtimeapi.ContainerStats) *runtimeapi.UInt64Value { return s.Memory.GetUsageBytes() }},
	{"container_memory_working_set_bytes", "Current working set in bytes.", runtimeapi.MetricType_GAUGE,
		func(s *runtimeapi.ContainerStats) *runtimeapi.UInt64Value { return s.Memory.GetWorkingSetBytes() }},
	{"container_memory_rss", "Size of RSS in bytes.", runtimeapi.MetricType_GAUGE,
		func(s *runtimeapi.ContainerStats) *runtimeapi.UInt64Value { return s.Memory.GetRssBytes() }},
	{"container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", runtimeapi.MetricType_GAUGE,
		func(s *runtimeapi.ContainerStats) *runtimeapi.UInt64Value { return s.WritableLayer.GetUsedBytes() }},
	{"container_fs_inodes_total", "Number of inodes that the container has on this filesystem.", runtimeapi.MetricType_GAUGE,
		func(s *runtimeapi.ContainerStats) *runtimeapi.UInt64Value { return s.WritableLayer.GetInodesUsed() }},
}

var networkMetrics = []struct {
	name, help string
	value      func(*runtimeapi.NetworkInterfaceUsage) *runtimeapi.UInt64Value
}{
	{"container_network_receive_bytes_total", "Cumulative count of bytes received.", (*runtimeapi.NetworkInterfaceUsage).GetRxBytes},
	{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", (*runtimeapi.NetworkInterfaceUsage).GetRxErrors},
	{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", (*runtimeapi.NetworkInterfaceUsage).GetTxBytes},
	{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", (*runtimeapi.NetworkInterfaceUsage).GetTxErrors},
}

const processMetric = "container_processes"

// ListMetricDescriptors names what ListPodSandboxMetrics returns.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	out := &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{
		{Name: processMetric, Help: "Number of processes running inside the container.", LabelKeys: ownLabels}}}
	for _, m := range containerMetrics {
		out.Descriptors = append(out.Descriptors, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: ownLabels})
	}
	for _, m := range networkMetrics {
		out.Descriptors = append(out.Descriptors, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: networkLabels})
	}
	return out, nil
}

// ListPodSandboxMetrics returns what the sandboxes and their containers use, under cAdvisor's names.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	stats, err := s.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, p := range stats.Stats {
		meta := p.Attributes.GetMetadata()
		pod := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.Attributes.Id}
		labels := []string{p.Attributes.Id, p.Attributes.Id, "", "", meta.GetName(), meta.GetNamespace()}
		pod.Metrics = append(pod.Metrics, &runtimeapi.Metric{Name: processMetric, MetricType: runtimeapi.MetricType_GAUGE, LabelValues: labels, Value: p.Linux.GetProcess().GetProcessCount()})
		interfaces := p.Linux.GetNetwork().GetInterfaces()
		if d := p.Linux.GetNetwork().GetDefaultInterface(); d != nil {
			interfaces = append([]*runtimeapi.NetworkInterfaceUsage{d}, interfaces...)
		}
		for _, i := range interfaces {
			for _, m := range networkMetrics {
				pod.Metrics = append(pod.Metrics, &runtimeapi.Metric{Name: m.name, LabelValues: append(labels[:len(labels):len(labels)], i.Name), Value: m.value(i)})
			}
		}
		for _, c := range p.Linux.GetContainers() {
			image := ""
			if held, err := s.container(c.Attributes.Id); err == nil {
				image = s.statusOf(held).GetImage().GetImage()
			}
			of := &runtimeapi.ContainerMetrics{ContainerId: c.Attributes.Id}
			values := []string{c.Attributes.Id, c.Attributes.Id, image, c.Attributes.GetMetadata().GetName(), meta.GetName(), meta.GetNamespace()}
			for _, m := range containerMetrics {
				of.Metrics = append(of.Metrics, &runtimeapi.Metric{Name: m.name, MetricType: m.kind, LabelValues: values, Value: m.value(c)})
			}
			pod.ContainerMetrics = append(pod.ContainerMetrics, of)
		}
		out.PodMetrics = append(out.PodMetrics, pod)
	}
	return out, nil
}
