// Package events holds the rules of the API group events.k8s.io. Its events are
// another view of those of the core group, which are what is stored.
package events

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/rules"
)

// The longest texts an event may have.
const (
	maxText = 128
	maxNote = 1024
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Namespaced[eventsv1.Event, eventsv1.EventList](eventsv1.SchemeGroupVersion, "events", "ev")
	r.CreateOnUpdate, r.UnconditionalUpdate = true, true
	r.StoredAs = corev1.SchemeGroupVersion.WithResource("events")
	r.ToStored = func(obj runtime.Object) (runtime.Object, error) {
		e, ok := obj.(*eventsv1.Event)
		if !ok {
			return nil, fmt.Errorf("convert %T to an event of the core group: not an event of %s", obj, eventsv1.GroupName)
		}
		return toCore(e), nil
	}
	r.FromStored = func(obj runtime.Object) (runtime.Object, error) {
		e, ok := obj.(*corev1.Event)
		if !ok {
			return nil, fmt.Errorf("convert %T to an event of %s: not an event of the core group", obj, eventsv1.GroupName)
		}
		return fromCore(e), nil
	}
	r.FieldLabels = []string{"regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid", "regarding.apiVersion",
		"regarding.resourceVersion", "regarding.fieldPath", "reason", "reportingController", "type"}
	kind := api.Kind[*eventsv1.Event]{
		Resource:       r,
		Validate:       validateEvent,
		ValidateUpdate: validateEventUpdate,
		Fields: func(e *eventsv1.Event) fields.Set {
			return fields.Set{
				"regarding.kind": e.Regarding.Kind, "regarding.namespace": e.Regarding.Namespace, "regarding.name": e.Regarding.Name,
				"regarding.uid": string(e.Regarding.UID), "regarding.apiVersion": e.Regarding.APIVersion,
				"regarding.resourceVersion": e.Regarding.ResourceVersion, "regarding.fieldPath": e.Regarding.FieldPath,
				"reason": e.Reason, "reportingController": e.ReportingController, "type": e.Type,
			}
		},
	}
	// Both views print the same table.
	for _, stored := range core.Resources() {
		if stored.GVR == r.StoredAs && stored.Row != nil {
			kind.Resource.Columns = stored.Columns
			kind.Row = func(e *eventsv1.Event) []any { return stored.Row(toCore(e)) }
		}
	}
	return []*api.Resource{kind.Erase()}
}

func toCore(e *eventsv1.Event) *corev1.Event {
	e = e.DeepCopy()
	out := &corev1.Event{
		ObjectMeta:          e.ObjectMeta,
		InvolvedObject:      e.Regarding,
		Related:             e.Related,
		Reason:              e.Reason,
		Message:             e.Note,
		Source:              e.DeprecatedSource,
		FirstTimestamp:      e.DeprecatedFirstTimestamp,
		LastTimestamp:       e.DeprecatedLastTimestamp,
		Count:               e.DeprecatedCount,
		Type:                e.Type,
		EventTime:           e.EventTime,
		Action:              e.Action,
		ReportingController: e.ReportingController,
		ReportingInstance:   e.ReportingInstance,
	}
	out.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Event"))
	if s := e.Series; s != nil {
		out.Series = &corev1.EventSeries{Count: s.Count, LastObservedTime: s.LastObservedTime}
	}
	return out
}

func fromCore(e *corev1.Event) *eventsv1.Event {
	e = e.DeepCopy()
	out := &eventsv1.Event{
		ObjectMeta:               e.ObjectMeta,
		Regarding:                e.InvolvedObject,
		Related:                  e.Related,
		Reason:                   e.Reason,
		Note:                     e.Message,
		DeprecatedSource:         e.Source,
		DeprecatedFirstTimestamp: e.FirstTimestamp,
		DeprecatedLastTimestamp:  e.LastTimestamp,
		DeprecatedCount:          e.Count,
		Type:                     e.Type,
		EventTime:                e.EventTime,
		Action:                   e.Action,
		ReportingController:      e.ReportingController,
		ReportingInstance:        e.ReportingInstance,
	}
	out.SetGroupVersionKind(eventsv1.SchemeGroupVersion.WithKind("Event"))
	if s := e.Series; s != nil {
		out.Series = &eventsv1.EventSeries{Count: s.Count, LastObservedTime: s.LastObservedTime}
	}
	return out
}

func validateEvent(e *eventsv1.Event) field.ErrorList {
	errs := validateRegarding(e)
	if e.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	errs = append(errs, validateSeries(e)...)
	controller := field.NewPath("reportingController")
	if e.ReportingController == "" {
		errs = append(errs, field.Required(controller, ""))
	}
	errs = append(errs, rules.Messages(e.ReportingController, controller, validation.IsQualifiedName(e.ReportingController))...)
	for _, text := range []struct{ name, value string }{
		{"reportingInstance", e.ReportingInstance}, {"action", e.Action}, {"reason", e.Reason},
	} {
		path := field.NewPath(text.name)
		errs = append(errs, rules.Required(text.value, path, "")...)
		if len(text.value) > maxText {
			errs = append(errs, field.Invalid(path, "", fmt.Sprintf("can have at most %v characters", maxText)))
		}
	}
	if len(e.Note) > maxNote {
		errs = append(errs, field.Invalid(field.NewPath("message"), "", fmt.Sprintf("can have at most %v characters", maxNote)))
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		errs = append(errs, field.Invalid(field.NewPath("type"), "", fmt.Sprintf("has invalid value: %v", e.Type)))
	}
	if !rules.Same(e.DeprecatedFirstTimestamp, metav1.Time{}) {
		errs = append(errs, field.Invalid(field.NewPath("firstTimestamp"), "", "needs to be unset"))
	}
	if !rules.Same(e.DeprecatedLastTimestamp, metav1.Time{}) {
		errs = append(errs, field.Invalid(field.NewPath("lastTimestamp"), "", "needs to be unset"))
	}
	if e.DeprecatedCount != 0 {
		errs = append(errs, field.Invalid(field.NewPath("count"), "", "needs to be unset"))
	}
	if e.DeprecatedSource != (corev1.EventSource{}) {
		errs = append(errs, field.Invalid(field.NewPath("source"), "", "needs to be unset"))
	}
	return errs
}

func validateSeries(e *eventsv1.Event) (errs field.ErrorList) {
	if e.Series == nil {
		return nil
	}
	series := field.NewPath("series")
	if e.Series.Count < 2 {
		errs = append(errs, field.Invalid(series.Child("count"), "", "should be at least 2"))
	}
	if e.Series.LastObservedTime.IsZero() {
		errs = append(errs, field.Required(series.Child("lastObservedTime"), ""))
	}
	return errs
}

// validateRegarding keeps an event in its object's namespace; those of cluster
// objects are in default, or where old components put them.
func validateRegarding(e *eventsv1.Event) field.ErrorList {
	path := field.NewPath("involvedObject", "namespace")
	switch namespace := e.Regarding.Namespace; {
	case namespace == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem,
		namespace != "" && namespace != e.Namespace:
		return field.ErrorList{field.Invalid(path, namespace, "does not match event.namespace")}
	}
	return nil
}

// validateEventUpdate lets only the series and the metadata of an event change.
func validateEventUpdate(e, old *eventsv1.Event) field.ErrorList {
	errs := append(validateRegarding(e), validateSeries(e)...)
	for _, f := range []struct {
		name     string
		now, was any
	}{
		{"involvedObject", e.Regarding, old.Regarding},
		{"reason", e.Reason, old.Reason},
		{"message", e.Note, old.Note},
		{"source", e.DeprecatedSource, old.DeprecatedSource},
		{"firstTimestamp", e.DeprecatedFirstTimestamp, old.DeprecatedFirstTimestamp},
		{"lastTimestamp", e.DeprecatedLastTimestamp, old.DeprecatedLastTimestamp},
		{"count", e.DeprecatedCount, old.DeprecatedCount},
		{"type", e.Type, old.Type},
		{"eventTime", e.EventTime, old.EventTime},
		{"action", e.Action, old.Action},
		{"related", e.Related, old.Related},
		{"reportingController", e.ReportingController, old.ReportingController},
		{"reportingInstance", e.ReportingInstance, old.ReportingInstance},
	} {
		errs = append(errs, rules.Immutable(f.now, f.was, field.NewPath(f.name))...)
	}
	return errs
}
