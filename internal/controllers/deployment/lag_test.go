package deployment_test

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/controllers/deployment"
	"github.com/proa-dev/proa/internal/controllers/replicaset"
	"github.com/proa-dev/proa/test/control"
)

// C4: the bounds hold also when the watches of both controllers lag, they start anew
// and the user changes his mind in the middle.
func TestBoundsWhenTheWatchLags(t *testing.T) {
	in(t, func(w world) {
		start := func() (stop func()) {
			lagging := control.Lagging{Interface: w.c, Delay: 300 * time.Millisecond}
			return control.Run(w, deployment.New(lagging, quiet), replicaset.New(lagging, quiet))
		}
		stop := start()
		control.Run(w, control.Kubelet{Client: w.c, Ready: 200 * time.Millisecond, Stop: 100 * time.Millisecond})
		w.create(4, strategy(intstr.FromInt32(1), intstr.FromInt32(1)))
		time.Sleep(time.Minute)
		bounds := w.watch()
		w.update(image("v2"))
		time.Sleep(2 * time.Second)
		stop()
		stop = start()
		time.Sleep(2 * time.Second)
		w.update(image("v3"))
		time.Sleep(3 * time.Second)
		w.update(func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = ptr.To[int32](1) })
		time.Sleep(5 * time.Minute)
		if got := w.sets(); got != "v2=0 v3=4" {
			w.Errorf("sets %s", got)
		}
		if least, most := bounds(); least < 3 || most > 5 {
			w.Errorf("between %d ready and %d active pods, want 3 and 5", least, most)
		}
		stop()
	})
}
