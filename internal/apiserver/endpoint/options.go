package endpoint

import (
	"net/url"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// options reads the options of a URL; the first thing that is wrong stays in err.
type options struct {
	values url.Values
	err    error
}

func (o *options) boolean(name string) bool {
	v, ok := o.values[name]
	return ok && (len(v) == 0 || queryBool(v[0]))
}

func (o *options) optionalBool(name string) *bool {
	if _, ok := o.values[name]; !ok {
		return nil
	}
	b := o.boolean(name)
	return &b
}

func (o *options) optionalInt(name string) *int64 {
	s := o.values.Get(name)
	if s == "" {
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		if o.err == nil {
			o.err = apierrors.NewBadRequest(err.Error())
		}
		return nil
	}
	return &n
}

func (o *options) integer(name string) int64 {
	if n := o.optionalInt(name); n != nil {
		return *n
	}
	return 0
}

func (q *request) options() (options, error) {
	if q.r.URL.RawQuery == "" {
		return options{}, nil
	}
	v, err := q.values()
	return options{values: v}, err
}

func (q *request) listOptions() (rest.ListOptions, error) {
	var out rest.ListOptions
	o, err := q.options()
	if err != nil || o.values == nil {
		q.selected(&out)
		return out, err
	}
	out.LabelSelector = o.values.Get("labelSelector")
	out.FieldSelector = o.values.Get("fieldSelector")
	out.Watch = o.boolean("watch")
	out.AllowWatchBookmarks = o.boolean("allowWatchBookmarks")
	out.ResourceVersion = o.values.Get("resourceVersion")
	out.ResourceVersionMatch = metav1.ResourceVersionMatch(o.values.Get("resourceVersionMatch"))
	out.TimeoutSeconds = o.optionalInt("timeoutSeconds")
	out.Limit = o.integer("limit")
	out.Continue = o.values.Get("continue")
	out.SendInitialEvents = o.optionalBool("sendInitialEvents")
	if o.err != nil {
		return out, o.err
	}
	if o.values.Get("shardSelector") != "" {
		return out, apierrors.NewBadRequest("shardSelector is not supported by this server")
	}
	if out.LabelSelector != "" {
		if out.Labels, err = labels.Parse(out.LabelSelector); err != nil {
			return out, apierrors.NewBadRequest(err.Error())
		}
	}
	if out.FieldSelector != "" {
		if out.Fields, err = fields.ParseSelector(out.FieldSelector); err != nil {
			return out, apierrors.NewBadRequest(err.Error())
		}
	}
	q.selected(&out)
	return out, nil
}

// selected narrows a watch of one object by its (old) path.
func (q *request) selected(out *rest.ListOptions) {
	if q.info.Verb != "watch" || q.info.Selected == "" {
		return
	}
	if out.Fields != nil {
		if name, ok := out.Fields.RequiresExactMatch("metadata.name"); ok && name == q.info.Selected {
			return
		}
		out.Fields = fields.AndSelectors(out.Fields, fields.OneTermEqualSelector("metadata.name", q.info.Selected))
		return
	}
	out.Fields = fields.OneTermEqualSelector("metadata.name", q.info.Selected)
}

func (q *request) getOptions() (metav1.GetOptions, error) {
	o, err := q.options()
	if err != nil || o.values == nil {
		return metav1.GetOptions{}, err
	}
	return metav1.GetOptions{ResourceVersion: o.values.Get("resourceVersion")}, nil
}

func invalidOptions(kind string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind(kind).GroupKind(), "", errs)
}

func (q *request) createOptions() (metav1.CreateOptions, error) {
	var out metav1.CreateOptions
	o, err := q.options()
	if err != nil || o.values == nil {
		return out, err
	}
	out.DryRun = o.values["dryRun"]
	out.FieldManager = o.values.Get("fieldManager")
	out.FieldValidation = o.values.Get("fieldValidation")
	return out, invalidOptions("CreateOptions", validation.ValidateCreateOptions(&out))
}

func (q *request) updateOptions() (metav1.UpdateOptions, error) {
	var out metav1.UpdateOptions
	o, err := q.options()
	if err != nil || o.values == nil {
		return out, err
	}
	out.DryRun = o.values["dryRun"]
	out.FieldManager = o.values.Get("fieldManager")
	out.FieldValidation = o.values.Get("fieldValidation")
	return out, invalidOptions("UpdateOptions", validation.ValidateUpdateOptions(&out))
}

func (q *request) patchOptions(kind types.PatchType) (metav1.PatchOptions, error) {
	var out metav1.PatchOptions
	o, err := q.options()
	if err != nil {
		return out, err
	}
	out.DryRun = o.values["dryRun"]
	out.FieldManager = o.values.Get("fieldManager")
	out.FieldValidation = o.values.Get("fieldValidation")
	out.Force = o.optionalBool("force")
	return out, invalidOptions("PatchOptions", validation.ValidatePatchOptions(&out, kind))
}

func (q *request) deleteOptionsOfURL(out *metav1.DeleteOptions) error {
	o, err := q.options()
	if err != nil || o.values == nil {
		return err
	}
	out.GracePeriodSeconds = o.optionalInt("gracePeriodSeconds")
	out.OrphanDependents = o.optionalBool("orphanDependents") //nolint:staticcheck // old clients still send it
	if p := o.values.Get("propagationPolicy"); p != "" {
		policy := metav1.DeletionPropagation(p)
		out.PropagationPolicy = &policy
	}
	out.DryRun = o.values["dryRun"]
	return o.err
}
