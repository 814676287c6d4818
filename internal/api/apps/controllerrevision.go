package apps

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func controllerRevisions(gv schema.GroupVersion) *api.Resource {
	r := rules.Namespaced[appsv1.ControllerRevision, appsv1.ControllerRevisionList](gv, "controllerrevisions")
	r.UnconditionalUpdate = true
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Controller", "Controller of the object"),
		rules.Integer("Revision", "Revision indicates the revision of the state represented by Data."),
		rules.Age(),
	}
	return api.Kind[*appsv1.ControllerRevision]{
		Resource: r,
		Validate: validateControllerRevision,
		ValidateUpdate: func(c, old *appsv1.ControllerRevision) field.ErrorList {
			return append(validateControllerRevision(c), rules.Immutable(c.Data, old.Data, field.NewPath("data"))...)
		},
		Row: func(c *appsv1.ControllerRevision) []any {
			return []any{c.Name, controllerOf(c), c.Revision, rules.Created(c)}
		},
	}.Erase()
}

func validateControllerRevision(c *appsv1.ControllerRevision) field.ErrorList {
	var errs field.ErrorList
	if len(c.Data.Raw) == 0 && c.Data.Object == nil {
		errs = append(errs, field.Required(field.NewPath("data"), "data is mandatory"))
	}
	return append(errs, rules.Nonnegative(c.Revision, field.NewPath("revision"))...)
}

// controllerOf names an object's controller as kubectl does: daemonset.apps/name.
func controllerOf(obj metav1.Object) string {
	ref := metav1.GetControllerOf(obj)
	if ref == nil {
		return rules.None
	}
	kind := strings.ToLower(ref.Kind)
	if gv, err := schema.ParseGroupVersion(ref.APIVersion); err == nil && gv.Group != "" {
		kind += "." + gv.Group
	}
	return kind + "/" + ref.Name
}
