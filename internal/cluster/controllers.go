package cluster

import (
	"context"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/proa-dev/proa/internal/client/events"
	"github.com/proa-dev/proa/internal/controllers/certificates"
	"github.com/proa-dev/proa/internal/controllers/cronjob"
	"github.com/proa-dev/proa/internal/controllers/daemonset"
	"github.com/proa-dev/proa/internal/controllers/deployment"
	"github.com/proa-dev/proa/internal/controllers/disruption"
	"github.com/proa-dev/proa/internal/controllers/endpoints"
	"github.com/proa-dev/proa/internal/controllers/endpointslice"
	"github.com/proa-dev/proa/internal/controllers/endpointslicemirroring"
	"github.com/proa-dev/proa/internal/controllers/garbagecollector"
	"github.com/proa-dev/proa/internal/controllers/job"
	"github.com/proa-dev/proa/internal/controllers/namespace"
	"github.com/proa-dev/proa/internal/controllers/nodeipam"
	"github.com/proa-dev/proa/internal/controllers/nodelifecycle"
	"github.com/proa-dev/proa/internal/controllers/persistentvolume"
	"github.com/proa-dev/proa/internal/controllers/podgc"
	"github.com/proa-dev/proa/internal/controllers/policystatus"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/internal/controllers/resourcequota"
	"github.com/proa-dev/proa/internal/controllers/serviceaccount"
	"github.com/proa-dev/proa/internal/controllers/statefulset"
	"github.com/proa-dev/proa/internal/controllers/storageprotection"
	"github.com/proa-dev/proa/internal/controllers/tainteviction"
	"github.com/proa-dev/proa/internal/controllers/ttlafterfinished"
	"github.com/proa-dev/proa/internal/scheduler"
)

// controllers starts what keeps the objects of the cluster as they ask to be, and the scheduler.
func (c *cluster) controllers(ctx context.Context, schemas policystatus.Schemas) error {
	manager := c.local.As("system:kube-controller-manager")
	told := events.New(manager, "cidrAllocator", "", c.log)
	c.part(ctx, "controller events", told.Run)
	ranges, err := nodeipam.New(nodeipam.Config{Client: manager, Cluster: clusterRange, Bits: podRange.Bits(), First: c.NodeName, Logger: c.log,
		Event: func(n *corev1.Node, eventType, reason, format string, args ...any) {
			told.Eventf(n, eventType, reason, format, args...)
		}})
	if err != nil {
		return err
	}
	for _, x := range []interface {
		Name() string
		Run(context.Context) error
	}{
		serviceaccount.New(manager, c.ca.CertPEM, c.log),
		namespace.New(manager, c.log),
		nodelifecycle.New(manager, c.log),
		ranges,
		certificates.NewApprover(manager, []netip.Prefix{clusterRange, serviceRange}, c.log),
		certificates.NewSigner(manager, c.ca.Cert, c.ca.Key, c.log),
		tainteviction.New(manager, c.log),
		podgc.New(manager, podgc.Terminated, c.log),
		storageprotection.NewClaims(manager, c.log),
		storageprotection.NewVolumes(manager, c.log),
		persistentvolume.New(manager, c.log),
		endpointslice.New(manager, c.log),
		endpoints.New(manager, c.log),
		endpointslicemirroring.New(manager, c.log),
		disruption.New(manager, c.log),
		deployment.New(manager, c.log),
		garbagecollector.New(manager, c.log),
		job.New(manager, c.log),
		ttlafterfinished.New(manager, c.log),
		cronjob.New(manager, c.log),
		replicaset.New(manager, c.log),
		replicaset.NewReplicationController(manager, c.log),
		daemonset.New(manager, c.log),
		statefulset.New(manager, c.log),
		resourcequota.New(manager, c.log),
		policystatus.New(manager, schemas, c.log),
	} {
		c.part(ctx, x.Name(), x.Run)
	}
	scheduling := c.local.As("system:kube-scheduler")
	recorder := events.New(scheduling, "default-scheduler", "", c.log)
	c.part(ctx, "scheduler events", recorder.Run)
	c.part(ctx, "scheduler", scheduler.New(scheduler.Config{Client: scheduling, Recorder: recorder, Logger: c.log, Seed: uint64(time.Now().UnixNano())}).Run)
	return nil
}
