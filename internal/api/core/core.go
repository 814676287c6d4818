// Package core holds the rules of the core API group (v1): pods, services, nodes,
// namespaces and the rest. podspec*.go has what pod templates of other groups
// share.
package core

import (
	"fmt"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	return []*api.Resource{
		binding(), configMap(), endpoints(), event(), limitRange(), namespace(), node(), claim(), volume(),
		pod(), podTemplate(), replicationController(), resourceQuota(), secret(), serviceAccount(), service(),
	}
}

var gv = corev1.SchemeGroupVersion

func column(name, kind, description string, wide ...bool) metav1.TableColumnDefinition {
	c := metav1.TableColumnDefinition{Name: name, Type: kind, Description: description}
	if name == "Name" {
		c.Format = "name"
	}
	if len(wide) > 0 && wide[0] {
		c.Priority = 1
	}
	return c
}

var nameColumn = column("Name", "string", "Name must be unique within a namespace.")
var ageColumn = column("Age", "string", "CreationTimestamp is a timestamp representing the server time when this object was created.")

func age(t metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(t.Time))
}

func binding() *api.Resource {
	r := rules.Namespaced[corev1.Binding, metav1.List](gv, "bindings")
	r.NewList = nil
	r.Verbs = []string{"create"}
	return &r
}

func configMap() *api.Resource {
	k := api.Kind[*corev1.ConfigMap]{Resource: rules.Namespaced[corev1.ConfigMap, corev1.ConfigMapList](gv, "configmaps", "cm")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Validate = validateConfigMap
	k.ValidateUpdate = func(obj, old *corev1.ConfigMap) field.ErrorList {
		errs := validateConfigMap(obj)
		if old.Immutable != nil && *old.Immutable {
			if obj.Immutable == nil || !*obj.Immutable {
				errs = append(errs, field.Forbidden(field.NewPath("immutable"), "field is immutable when `immutable` is set"))
			}
			if !apiequality.Semantic.DeepEqual(obj.Data, old.Data) {
				errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
			}
			if !apiequality.Semantic.DeepEqual(obj.BinaryData, old.BinaryData) {
				errs = append(errs, field.Forbidden(field.NewPath("binaryData"), "field is immutable when `immutable` is set"))
			}
		}
		return errs
	}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Data", "string", "Number of entries."), ageColumn}
	k.Row = func(o *corev1.ConfigMap) []any {
		return []any{o.Name, int64(len(o.Data) + len(o.BinaryData)), age(o.CreationTimestamp)}
	}
	return k.Erase()
}

// maxData is what a Secret or ConfigMap holds at most.
const maxData = 1 << 20

func validateConfigMap(o *corev1.ConfigMap) (errs field.ErrorList) {
	size := 0
	for key, v := range o.Data {
		errs = append(errs, dataKey(field.NewPath("data").Key(key), key)...)
		if _, both := o.BinaryData[key]; both {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(key), key, "duplicate of key present in binaryData"))
		}
		size += len(v)
	}
	for key, v := range o.BinaryData {
		errs = append(errs, dataKey(field.NewPath("binaryData").Key(key), key)...)
		size += len(v)
	}
	if size > maxData {
		errs = append(errs, field.TooLong(field.NewPath(""), "", maxData))
	}
	return errs
}

func secret() *api.Resource {
	k := api.Kind[*corev1.Secret]{Resource: rules.Namespaced[corev1.Secret, corev1.SecretList](gv, "secrets")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Default = func(o *corev1.Secret) {
		if o.Type == "" {
			o.Type = corev1.SecretTypeOpaque
		}
		for key, v := range o.StringData {
			if o.Data == nil {
				o.Data = map[string][]byte{}
			}
			o.Data[key] = []byte(v)
		}
		o.StringData = nil
	}
	validate := func(o *corev1.Secret) (errs field.ErrorList) {
		size := 0
		for key, v := range o.Data {
			errs = append(errs, dataKey(field.NewPath("data").Key(key), key)...)
			size += len(v)
		}
		if size > maxData {
			errs = append(errs, field.TooLong(field.NewPath("data"), "", maxData))
		}
		required := map[corev1.SecretType][]string{
			corev1.SecretTypeDockerConfigJson: {corev1.DockerConfigJsonKey},
			corev1.SecretTypeDockercfg:        {corev1.DockerConfigKey},
			corev1.SecretTypeSSHAuth:          {corev1.SSHAuthPrivateKey},
			corev1.SecretTypeTLS:              {corev1.TLSCertKey, corev1.TLSPrivateKeyKey},
		}
		for _, key := range required[o.Type] {
			if _, ok := o.Data[key]; !ok {
				errs = append(errs, field.Required(field.NewPath("data").Key(key), ""))
			}
		}
		if o.Type == corev1.SecretTypeServiceAccountToken && o.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
		return errs
	}
	k.Validate = validate
	k.ValidateUpdate = func(obj, old *corev1.Secret) field.ErrorList {
		errs := validate(obj)
		errs = append(errs, validation.ValidateImmutableField(obj.Type, old.Type, field.NewPath("type"))...)
		if old.Immutable != nil && *old.Immutable {
			if obj.Immutable == nil || !*obj.Immutable {
				errs = append(errs, field.Forbidden(field.NewPath("immutable"), "field is immutable when `immutable` is set"))
			}
			if !apiequality.Semantic.DeepEqual(obj.Data, old.Data) {
				errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
			}
		}
		return errs
	}
	k.Fields = func(o *corev1.Secret) fields.Set { return fields.Set{"type": string(o.Type)} }
	k.Resource.FieldLabels = []string{"type"}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Type", "string", "Used to facilitate programmatic handling of secret data."),
		column("Data", "string", "Number of entries."), ageColumn}
	k.Row = func(o *corev1.Secret) []any {
		return []any{o.Name, string(o.Type), int64(len(o.Data)), age(o.CreationTimestamp)}
	}
	return k.Erase()
}

func serviceAccount() *api.Resource {
	k := api.Kind[*corev1.ServiceAccount]{Resource: rules.Namespaced[corev1.ServiceAccount, corev1.ServiceAccountList](gv, "serviceaccounts", "sa")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Resource.Subresources = []string{"token"}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Secrets", "string", "Number of secrets."), ageColumn}
	k.Row = func(o *corev1.ServiceAccount) []any {
		return []any{o.Name, int64(len(o.Secrets)), age(o.CreationTimestamp)}
	}
	return k.Erase()
}

func namespace() *api.Resource {
	k := api.Kind[*corev1.Namespace]{Resource: rules.Cluster[corev1.Namespace, corev1.NamespaceList](gv, "namespaces", "ns")}
	k.Resource.UnconditionalUpdate = true
	k.Resource.Subresources = []string{"finalize"}
	k.ValidateName = validation.ValidateNamespaceName
	k.Default = func(o *corev1.Namespace) {
		if o.Labels[corev1.LabelMetadataName] != o.Name && o.Name != "" {
			if o.Labels == nil {
				o.Labels = map[string]string{}
			}
			o.Labels[corev1.LabelMetadataName] = o.Name
		}
	}
	k.PrepareForCreate = func(o *corev1.Namespace) {
		o.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
		for _, f := range o.Spec.Finalizers {
			if f == corev1.FinalizerKubernetes {
				return
			}
		}
		o.Spec.Finalizers = append(o.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
	// Finalizers are changed through /finalize only.
	k.PrepareForUpdate = func(o, old *corev1.Namespace) { o.Spec.Finalizers = old.Spec.Finalizers }
	k.Validate = func(*corev1.Namespace) field.ErrorList { return nil }
	k.CopyStatus = func(dst, src *corev1.Namespace) { src.Status.DeepCopyInto(&dst.Status) }
	k.Fields = func(o *corev1.Namespace) fields.Set { return fields.Set{"status.phase": string(o.Status.Phase)} }
	k.Resource.FieldLabels = []string{"status.phase"}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Status", "string", "The status of the namespace"), ageColumn}
	k.Row = func(o *corev1.Namespace) []any {
		return []any{o.Name, string(o.Status.Phase), age(o.CreationTimestamp)}
	}
	return k.Erase()
}

func limitRange() *api.Resource {
	k := api.Kind[*corev1.LimitRange]{Resource: rules.Namespaced[corev1.LimitRange, corev1.LimitRangeList](gv, "limitranges", "limits")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Default = func(o *corev1.LimitRange) {
		for i := range o.Spec.Limits {
			l := &o.Spec.Limits[i]
			if l.Type != corev1.LimitTypeContainer {
				continue
			}
			fillList(&l.Default, l.Max)
			fillList(&l.DefaultRequest, l.Default)
			fillList(&l.DefaultRequest, l.Min)
		}
	}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Created At", "date", "CreationTimestamp is a timestamp representing the server time when this object was created.")}
	k.Row = func(o *corev1.LimitRange) []any {
		return []any{o.Name, o.CreationTimestamp.UTC().Format(time.RFC3339)}
	}
	return k.Erase()
}

func fillList(to *corev1.ResourceList, from corev1.ResourceList) {
	for name, q := range from {
		if _, ok := (*to)[name]; !ok {
			if *to == nil {
				*to = corev1.ResourceList{}
			}
			(*to)[name] = q.DeepCopy()
		}
	}
}

func resourceQuota() *api.Resource {
	k := api.Kind[*corev1.ResourceQuota]{Resource: rules.Namespaced[corev1.ResourceQuota, corev1.ResourceQuotaList](gv, "resourcequotas", "quota")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.CopyStatus = func(dst, src *corev1.ResourceQuota) { src.Status.DeepCopyInto(&dst.Status) }
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Request", "string", "Request represents a minimum amount of cpu/memory that a container may consume."),
		column("Limit", "string", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."), ageColumn}
	k.Row = func(o *corev1.ResourceQuota) []any {
		var requests, limits []string
		for name := range o.Status.Hard {
			hard, used := o.Status.Hard[name], o.Status.Used[name]
			text := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
			if strings.HasPrefix(string(name), "limits.") {
				limits = append(limits, text)
			} else {
				requests = append(requests, text)
			}
		}
		sort.Strings(requests)
		sort.Strings(limits)
		return []any{o.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), age(o.CreationTimestamp)}
	}
	return k.Erase()
}

func podTemplate() *api.Resource {
	k := api.Kind[*corev1.PodTemplate]{Resource: rules.Namespaced[corev1.PodTemplate, corev1.PodTemplateList](gv, "podtemplates")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Default = func(o *corev1.PodTemplate) { DefaultPodTemplate(&o.Template) }
	k.Validate = func(o *corev1.PodTemplate) field.ErrorList {
		return ValidatePodTemplateSpec(&o.Template, field.NewPath("template"))
	}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Containers", "string", "Names of each container in the template."),
		column("Images", "string", "Images referenced by each container in the template."), column("Pod Labels", "string", "The labels for the pod template.")}
	k.Row = func(o *corev1.PodTemplate) []any {
		names, images := ContainerNames(&o.Template.Spec)
		return []any{o.Name, names, images, metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: o.Template.Labels})}
	}
	return k.Erase()
}

// ContainerNames returns the names and images of a pod's containers, joined by commas.
func ContainerNames(spec *corev1.PodSpec) (names, images string) {
	n, im := make([]string, len(spec.Containers)), make([]string, len(spec.Containers))
	for i := range spec.Containers {
		n[i], im[i] = spec.Containers[i].Name, spec.Containers[i].Image
	}
	return strings.Join(n, ","), strings.Join(im, ",")
}

func replicationController() *api.Resource {
	k := api.Kind[*corev1.ReplicationController]{Resource: rules.Namespaced[corev1.ReplicationController, corev1.ReplicationControllerList](gv, "replicationcontrollers", "rc")}
	k.Resource.Categories = []string{"all"}
	k.Resource.UnconditionalUpdate, k.Resource.DefaultOrphan = true, true
	k.Default = func(o *corev1.ReplicationController) {
		if t := o.Spec.Template; t != nil {
			DefaultPodTemplate(t)
			if len(o.Spec.Selector) == 0 {
				o.Spec.Selector = t.Labels
			}
			if len(o.Labels) == 0 {
				o.Labels = t.Labels
			}
		}
		if o.Spec.Replicas == nil {
			one := int32(1)
			o.Spec.Replicas = &one
		}
	}
	k.Validate = func(o *corev1.ReplicationController) (errs field.ErrorList) {
		spec := field.NewPath("spec")
		if o.Spec.Replicas != nil && *o.Spec.Replicas < 0 {
			errs = append(errs, field.Invalid(spec.Child("replicas"), *o.Spec.Replicas, "must be greater than or equal to 0"))
		}
		if len(o.Spec.Selector) == 0 {
			errs = append(errs, field.Required(spec.Child("selector"), ""))
		}
		if o.Spec.Template == nil {
			return append(errs, field.Required(spec.Child("template"), ""))
		}
		for key, v := range o.Spec.Selector {
			if o.Spec.Template.Labels[key] != v {
				errs = append(errs, field.Invalid(spec.Child("template", "metadata", "labels"), o.Spec.Template.Labels, "`selector` does not match template `labels`"))
				break
			}
		}
		return append(errs, ValidatePodTemplateSpec(o.Spec.Template, spec.Child("template"))...)
	}
	k.CopyStatus = func(dst, src *corev1.ReplicationController) { src.Status.DeepCopyInto(&dst.Status) }
	k.SpecChanged = func(o, old *corev1.ReplicationController) bool {
		return !apiequality.Semantic.DeepEqual(o.Spec, old.Spec)
	}
	k.ScaleGet = func(o *corev1.ReplicationController) (int32, int32, string) {
		return *o.Spec.Replicas, o.Status.Replicas, metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: o.Spec.Selector})
	}
	k.ScaleSet = func(o *corev1.ReplicationController, n int32) { o.Spec.Replicas = &n }
	k.Fields = func(o *corev1.ReplicationController) fields.Set {
		return fields.Set{"status.replicas": fmt.Sprint(o.Status.Replicas)}
	}
	k.Resource.FieldLabels = []string{"status.replicas"}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Desired", "integer", "Replicas is the number of desired replicas."),
		column("Current", "integer", "Replicas is the most recently observed number of replicas."), column("Ready", "integer", "The number of ready replicas for this replication controller."), ageColumn,
		column("Containers", "string", "Names of each container in the template.", true), column("Images", "string", "Images referenced by each container in the template.", true),
		column("Selector", "string", "Selector is a label query over pods that should match the Replicas count.", true)}
	k.Row = func(o *corev1.ReplicationController) []any {
		names, images := "", ""
		if o.Spec.Template != nil {
			names, images = ContainerNames(&o.Spec.Template.Spec)
		}
		desired := int32(1)
		if o.Spec.Replicas != nil {
			desired = *o.Spec.Replicas
		}
		return []any{o.Name, int64(desired), int64(o.Status.Replicas), int64(o.Status.ReadyReplicas), age(o.CreationTimestamp), names, images,
			metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: o.Spec.Selector})}
	}
	return k.Erase()
}

func endpoints() *api.Resource {
	k := api.Kind[*corev1.Endpoints]{Resource: rules.Namespaced[corev1.Endpoints, corev1.EndpointsList](gv, "endpoints", "ep")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Resource.Singular = "endpoints"
	k.Default = func(o *corev1.Endpoints) {
		for i := range o.Subsets {
			for j := range o.Subsets[i].Ports {
				if o.Subsets[i].Ports[j].Protocol == "" {
					o.Subsets[i].Ports[j].Protocol = corev1.ProtocolTCP
				}
			}
		}
	}
	k.Resource.Columns = []metav1.TableColumnDefinition{nameColumn, column("Endpoints", "string", "The set of all endpoints is the union of all subsets."), ageColumn}
	k.Row = func(o *corev1.Endpoints) []any {
		var list []string
		total := 0
		for _, s := range o.Subsets {
			ports := s.Ports
			for _, a := range s.Addresses {
				if len(ports) == 0 {
					total++
					list = append(list, a.IP)
				}
				for _, p := range ports {
					total++
					list = append(list, fmt.Sprintf("%s:%d", a.IP, p.Port))
				}
			}
		}
		text := strings.Join(list[:min(3, len(list))], ",")
		switch {
		case total == 0:
			text = "<none>"
		case total > 3:
			text += fmt.Sprintf(" + %d more...", total-3)
		}
		return []any{o.Name, text, age(o.CreationTimestamp)}
	}
	return k.Erase()
}

func event() *api.Resource {
	k := api.Kind[*corev1.Event]{Resource: rules.Namespaced[corev1.Event, corev1.EventList](gv, "events", "ev")}
	k.Resource.CreateOnUpdate, k.Resource.UnconditionalUpdate = true, true
	k.Validate = func(o *corev1.Event) (errs field.ErrorList) {
		ns := o.InvolvedObject.Namespace
		if ns == "" && o.Namespace != metav1.NamespaceDefault && o.Namespace != metav1.NamespaceSystem || ns != "" && ns != o.Namespace {
			errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), ns, "does not match event.namespace"))
		}
		return errs
	}
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
	k.Resource.Columns = []metav1.TableColumnDefinition{
		column("Last Seen", "string", "The time at which the most recent occurrence of this event was recorded."), column("Type", "string", "Type of this event (Normal, Warning), new types could be added in the future"),
		column("Reason", "string", "Reason why this event happened."), column("Object", "string", "The object that this event is about."),
		column("Subobject", "string", "The part of the object.", true), column("Source", "string", "The component reporting this event.", true),
		column("Message", "string", "A human-readable description of the status of this operation."),
		column("First Seen", "string", "The time at which the event was first recorded.", true), column("Count", "string", "The number of times this event has occurred.", true), column("Name", "string", "Name must be unique within a namespace.", true)}
	k.Row = func(o *corev1.Event) []any {
		first := o.FirstTimestamp
		if first.IsZero() {
			first = metav1.NewTime(o.EventTime.Time)
		}
		last, count := o.LastTimestamp, o.Count
		if o.Series != nil {
			last, count = metav1.NewTime(o.Series.LastObservedTime.Time), o.Series.Count
		}
		if last.IsZero() {
			last = first
		}
		if count == 0 {
			count = 1
		}
		source := o.Source.Component
		if source == "" {
			source = o.ReportingController
		}
		if o.Source.Host != "" {
			source += ", " + o.Source.Host
		}
		target := strings.ToLower(o.InvolvedObject.Kind)
		if o.InvolvedObject.Name != "" {
			target += "/" + o.InvolvedObject.Name
		}
		return []any{age(last), o.Type, o.Reason, target, o.InvolvedObject.FieldPath, source, strings.TrimSpace(o.Message), age(first), int64(count), o.Name}
	}
	return k.Erase()
}
