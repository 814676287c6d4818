package rest

import (
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/proa-dev/proa/internal/api"
)

// fieldTracker and managers are where metadata.managedFields is kept. Field
// ownership is not recorded: what an object carries is kept as it is, and
// server-side apply, which needs it, is refused (see Patch).
type (
	fieldTracker struct{}
	managers     struct{}
)

func newFieldTracker(*Registry) *fieldTracker { return &fieldTracker{} }

// update is called after each write that is no apply.
func (managers) update(_ *storage, _, obj api.Object, _, _ string) error {
	if len(obj.GetManagedFields()) == 0 {
		obj.SetManagedFields(nil)
	}
	return nil
}

// inheritManagedFields gives obj the old owners unless the client takes them
// away, and reports whether they are the same then.
func inheritManagedFields(obj, old api.Object, _ bool) bool {
	if obj.GetManagedFields() == nil {
		obj.SetManagedFields(old.GetManagedFields())
	}
	return equality.Semantic.DeepEqual(obj.GetManagedFields(), old.GetManagedFields())
}

// keepTimes leaves the times of owners alone whose fields did not change.
func keepTimes(obj, old api.Object) {
	was := old.GetManagedFields()
	now := obj.GetManagedFields()
	for i := range now {
		for j := range was {
			if now[i].Manager == was[j].Manager && now[i].Operation == was[j].Operation && now[i].Subresource == was[j].Subresource &&
				equality.Semantic.DeepEqual(now[i].FieldsV1, was[j].FieldsV1) {
				now[i].Time = was[j].Time
			}
		}
	}
}
