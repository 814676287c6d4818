package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// The longest texts that an event of the new form may have.
const (
	maxEventText = 128
	maxEventNote = 1024
)

func event() *api.Resource {
	k := api.Kind[*corev1.Event]{Resource: rules.Namespaced[corev1.Event, corev1.EventList](gv, "events", "ev")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	// Old clients made names of what they watched; all that a URL can hold is one.
	k.ValidateName = func(name string, prefix bool) []string {
		if prefix {
			return path.IsValidPathSegmentPrefix(name)
		}
		return path.IsValidPathSegmentName(name)
	}
	k.Validate = validateEvent
	k.ValidateUpdate = func(o, _ *corev1.Event) field.ErrorList { return validateEvent(o) }
	k.Fields = func(o *corev1.Event) fields.Set {
		source := o.Source.Component
		if source == "" {
			source = o.ReportingController
		}
		i := &o.InvolvedObject
		return fields.Set{"involvedObject.kind": i.Kind, "involvedObject.namespace": i.Namespace, "involvedObject.name": i.Name,
			"involvedObject.uid": string(i.UID), "involvedObject.apiVersion": i.APIVersion, "involvedObject.resourceVersion": i.ResourceVersion,
			"involvedObject.fieldPath": i.FieldPath, "reason": o.Reason, "reportingComponent": o.ReportingController, "source": source, "type": o.Type}
	}
	k.Resource.FieldLabels = []string{"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion",
		"involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type"}
	doc := corev1.Event{}.SwaggerDoc()
	name := rules.Name()
	name.Priority = 1
	k.Resource.Columns = []metav1.TableColumnDefinition{
		rules.Text("Last Seen", doc["lastTimestamp"]), rules.Text("Type", doc["type"]), rules.Text("Reason", doc["reason"]), rules.Text("Object", doc["involvedObject"]),
		rules.Wide("Subobject", corev1.ObjectReference{}.SwaggerDoc()["fieldPath"]), rules.Wide("Source", doc["source"]), rules.Text("Message", doc["message"]),
		rules.Wide("First Seen", doc["firstTimestamp"]), rules.Wide("Count", doc["count"]), name,
	}
	k.Row = eventRow
	return k.Erase()
}

// validateEvent keeps an event in the namespace of its object; those of cluster
// objects are in default. Events of the new form, which have an eventTime, must
// also say who did what.
func validateEvent(o *corev1.Event) (errs field.ErrorList) {
	namespace, of := field.NewPath("involvedObject", "namespace"), o.InvolvedObject.Namespace
	mismatch := field.ErrorList{field.Invalid(namespace, of, "does not match event.namespace")}
	if o.EventTime.IsZero() {
		if of == "" && o.Namespace != "" && o.Namespace != metav1.NamespaceDefault || of != "" && of != o.Namespace {
			return mismatch
		}
		return nil
	}
	if of == "" && o.Namespace != metav1.NamespaceDefault && o.Namespace != metav1.NamespaceSystem {
		errs = append(errs, mismatch...)
	}
	component := field.NewPath("reportingComponent")
	errs = append(errs, required(component, o.ReportingController)...)
	errs = append(errs, qualified(component, o.ReportingController)...)
	for _, text := range []struct{ name, value string }{{"reportingInstance", o.ReportingInstance}, {"action", o.Action}, {"reason", o.Reason}} {
		p := field.NewPath(text.name)
		errs = append(errs, required(p, text.value)...)
		if len(text.value) > maxEventText {
			errs = append(errs, field.Invalid(p, "", fmt.Sprintf("can have at most %v characters", maxEventText)))
		}
	}
	if len(o.Message) > maxEventNote {
		errs = append(errs, field.Invalid(field.NewPath("message"), "", fmt.Sprintf("can have at most %v characters", maxEventNote)))
	}
	return errs
}

func eventRow(o *corev1.Event) []any {
	first := rules.Since(o.FirstTimestamp)
	if o.FirstTimestamp.IsZero() {
		first = rules.Since(metav1.NewTime(o.EventTime.Time))
	}
	last := rules.Since(o.LastTimestamp)
	if o.LastTimestamp.IsZero() {
		last = first
	}
	count := o.Count
	if o.Series != nil {
		last, count = rules.Since(metav1.NewTime(o.Series.LastObservedTime.Time)), o.Series.Count
	} else if count == 0 {
		count = 1
	}
	source, host := o.Source.Component, o.Source.Host
	zero(&source, o.ReportingController)
	zero(&host, o.ReportingInstance)
	if host != "" {
		source += ", " + host
	}
	target := strings.ToLower(o.InvolvedObject.Kind)
	if o.InvolvedObject.Name != "" {
		target += "/" + o.InvolvedObject.Name
	}
	return []any{last, o.Type, o.Reason, target, o.InvolvedObject.FieldPath, source, strings.TrimSpace(o.Message), first, int64(count), o.Name}
}
