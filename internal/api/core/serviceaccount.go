package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func serviceAccount() *api.Resource {
	k := api.Kind[*corev1.ServiceAccount]{Resource: rules.Namespaced[corev1.ServiceAccount, corev1.ServiceAccountList](gv, "serviceaccounts", "sa")}
	k.Resource.UnconditionalUpdate = true
	k.Resource.Subresources = []string{"token"}
	// References to secrets are names in the same namespace, whatever else a client writes.
	strip := func(o *corev1.ServiceAccount) {
		for i := range o.Secrets {
			o.Secrets[i] = corev1.ObjectReference{Name: o.Secrets[i].Name}
		}
	}
	k.PrepareForCreate = strip
	k.PrepareForUpdate = func(o, _ *corev1.ServiceAccount) { strip(o) }
	k.Validate = func(*corev1.ServiceAccount) field.ErrorList { return nil }
	k.Resource.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Age()}
	k.Row = func(o *corev1.ServiceAccount) []any { return []any{o.Name, rules.Created(o)} }
	return k.Erase()
}
