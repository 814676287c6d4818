// Package events holds the rules of the API group of k8s.io/api/events/v1.
package events

import (
	eventsv1 "k8s.io/api/events/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	gv := eventsv1.SchemeGroupVersion
	resources := []api.Resource{
		rules.Namespaced[eventsv1.Event, eventsv1.EventList](gv, "events", "ev"),
	}
	out := make([]*api.Resource, len(resources))
	for i := range resources {
		out[i] = &resources[i]
	}
	return out
}
