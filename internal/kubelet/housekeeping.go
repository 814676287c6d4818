package kubelet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/proa-dev/proa/internal/kubelet/node"
	"github.com/proa-dev/proa/internal/kubelet/pod"
)

const (
	// logPeriod is how often the sizes of logs are looked at, while containers run.
	logPeriod = 10 * time.Second
	// imagePeriod is how often the disk of images is looked at.
	imagePeriod = 5 * time.Minute
	// Images are removed above high until below low percent of the disk is used.
	imagesHigh, imagesLow = 85, 80
	// imageMinAge protects an image that was just pulled.
	imageMinAge = 2 * time.Minute
	// evictPause lets memory recover between two evictions.
	evictPause = 10 * time.Second
)

// housekeeping rotates logs, collects images and enforces emptyDir limits, all on
// one slow timer.
func (k *Kubelet) housekeeping(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-k.synced:
	}
	// Events between the list at the start and the stream may have been lost.
	if !wait(ctx, 2*time.Second) {
		return ctx.Err()
	}
	k.relist(ctx)
	firstSeen := map[string]time.Time{}
	imagesAt := time.Now()
	for wait(ctx, logPeriod) {
		for _, s := range k.snapshots() {
			if !s.Running {
				continue
			}
			for _, list := range s.Containers {
				if len(list) == 0 || list[0].State != runtimeapi.ContainerState_CONTAINER_RUNNING || list[0].LogPath == "" {
					continue
				}
				if err := k.rotator.Check(ctx, list[0].ID, list[0].LogPath); err != nil && ctx.Err() == nil {
					k.log.Warn("rotating a log", "namespace", s.Pod.Namespace, "name", s.Pod.Name, "err", err)
				}
			}
			k.checkEmptyDirs(s)
		}
		if time.Since(imagesAt) >= imagePeriod || k.node.Pressure().Disk {
			imagesAt = time.Now()
			if err := k.collectImages(ctx, firstSeen); err != nil && ctx.Err() == nil {
				k.log.Warn("collecting images", "err", err)
			}
		}
	}
	return ctx.Err()
}

// checkEmptyDirs evicts a pod whose emptyDir on disk has outgrown its limit.
func (k *Kubelet) checkEmptyDirs(s *pod.Snapshot) {
	for i := range s.Pod.Spec.Volumes {
		v := &s.Pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 || v.EmptyDir.Medium != corev1.StorageMediumDefault {
			continue
		}
		used, err := k.volumes.Usage(s.Pod, v.Name)
		if err != nil || used <= v.EmptyDir.SizeLimit.Value() {
			continue
		}
		k.evictPod(s.Pod, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String()))
		return
	}
}

func (k *Kubelet) evictPod(p *corev1.Pod, message string) {
	k.mu.Lock()
	e := k.actors[p.UID]
	k.mu.Unlock()
	if e == nil {
		return
	}
	k.event(p, "", corev1.EventTypeWarning, "Evicted", "%s", message)
	// Eviction by the node is not graceful: what is short is needed now.
	e.actor.Evict("Evicted", message, time.Second)
}

// pressure is told what the node lacks, each heartbeat. Short of memory, one pod
// is evicted: the one that matters least.
func (k *Kubelet) pressure(p node.Pressure) {
	if !p.Memory || time.Since(k.evict) < evictPause {
		return
	}
	victims := k.rank()
	if len(victims) == 0 {
		return
	}
	k.evict = time.Now()
	v := victims[0]
	k.evictPod(v, fmt.Sprintf("The node was low on resource: memory. Threshold quantity: 100Mi, available: %dKi. ", p.Available>>10))
}

// rank orders the running pods that may be evicted: without requests for memory
// first, then by priority, then by class.
func (k *Kubelet) rank() []*corev1.Pod {
	var out []*corev1.Pod
	for _, s := range k.snapshots() {
		if s.Running && !critical(s.Pod) && s.Pod.DeletionTimestamp == nil && s.Pod.Namespace != "kube-system" {
			out = append(out, s.Pod)
		}
	}
	class := map[corev1.PodQOSClass]int{corev1.PodQOSBestEffort: 0, corev1.PodQOSBurstable: 1, corev1.PodQOSGuaranteed: 2}
	priority := func(p *corev1.Pod) int32 {
		if p.Spec.Priority == nil {
			return 0
		}
		return *p.Spec.Priority
	}
	request := func(p *corev1.Pod) int64 {
		r := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
		return r.Memory().Value()
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int {
		return cmp.Or(
			cmp.Compare(min(request(a), 1), min(request(b), 1)),
			cmp.Compare(priority(a), priority(b)),
			cmp.Compare(class[pod.QOS(a)], class[pod.QOS(b)]),
			cmp.Compare(string(a.UID), string(b.UID)))
	})
	return out
}

// collectImages removes unused images when their disk is too full.
func (k *Kubelet) collectImages(ctx context.Context, firstSeen map[string]time.Time) error {
	root := cmp.Or(k.cfg.ImageRoot, k.cfg.RootDir)
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", root, err)
	}
	list, err := k.cfg.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	now := time.Now()
	present := map[string]bool{}
	for _, i := range list.Images {
		present[i.Id] = true
		if _, ok := firstSeen[i.Id]; !ok {
			firstSeen[i.Id] = now
		}
	}
	for id := range firstSeen {
		if !present[id] {
			delete(firstSeen, id)
		}
	}
	total := st.Blocks * uint64(st.Bsize)
	free := st.Bavail * uint64(st.Bsize)
	if total == 0 || (total-free)*100 < total*imagesHigh {
		return nil
	}
	want := free
	goal := total * (100 - imagesLow) / 100
	used, err := k.imagesInUse(ctx)
	if err != nil {
		return err
	}
	candidates := slices.DeleteFunc(slices.Clone(list.Images), func(i *runtimeapi.Image) bool {
		return i.Pinned || used[i.Id] || now.Sub(firstSeen[i.Id]) < imageMinAge
	})
	slices.SortFunc(candidates, func(a, b *runtimeapi.Image) int {
		return cmp.Or(firstSeen[a.Id].Compare(firstSeen[b.Id]), cmp.Compare(b.Size, a.Size))
	})
	for _, i := range candidates {
		if want >= goal {
			break
		}
		if _, err := k.cfg.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			k.log.Warn("removing an unused image", "image", i.Id, "err", err)
			continue
		}
		want += i.Size
	}
	k.node.ImagesChanged()
	if want < goal {
		return fmt.Errorf("disk usage of images is over %d%% and unused images free too little", imagesHigh)
	}
	return nil
}

func (k *Kubelet) imagesInUse(ctx context.Context) (map[string]bool, error) {
	r, err := k.cfg.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range r.Containers {
		used[c.ImageId], used[c.ImageRef], used[c.GetImage().GetImage()] = true, true, true
	}
	return used, nil
}

// configz is what the kubelet runs with.
func (k *Kubelet) configz() map[string]any {
	c := &k.cfg
	return map[string]any{"kubeletconfig": map[string]any{
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"clusterDNS": c.ClusterDNS, "clusterDomain": c.ClusterDomain, "maxPods": cmp.Or(c.MaxPods, 110),
		"nodeLeaseDurationSeconds": 40, "nodeStatusUpdateFrequency": "10s", "nodeStatusReportFrequency": "5m0s",
		"imageGCHighThresholdPercent": imagesHigh, "imageGCLowThresholdPercent": imagesLow,
		"containerLogMaxSize": "10Mi", "containerLogMaxFiles": 5, "seccompDefault": true,
		"resolvConf": c.ResolvConf, "serializeImagePulls": false, "port": portOf(c.Listen),
		"evictionHard": map[string]string{"memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%"},
	}}
}
