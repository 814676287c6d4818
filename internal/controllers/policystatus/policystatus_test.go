package policystatus_test

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
	"github.com/proa-dev/proa/internal/apiserver/openapi"
	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/policystatus"
	"github.com/proa-dev/proa/test/control"
)

var policies = client.Kind[*admissionregistrationv1.ValidatingAdmissionPolicy]{GVR: admissionregistrationv1.SchemeGroupVersion.WithResource("validatingadmissionpolicies")}

func TestExpressionsAreCheckedAgainstTheKinds(t *testing.T) {
	catalog, err := discovery.NewCatalog(resources.All())
	if err != nil {
		t.Fatal(err)
	}
	schemas := &openapi.Handler{Catalog: catalog}
	for _, x := range []struct {
		name, expression, message string
		variables                 []admissionregistrationv1.Variable
		params                    *admissionregistrationv1.ParamKind
		want                      []string // field and a part of the warning, in turn
	}{
		{name: "right", expression: "object.spec.replicas > 1 && object.metadata.name.startsWith('a') && object.spec.template.spec.containers.all(c, c.image != '')"},
		{name: "no such field", expression: "object.spec.replicas > 1 && object.spec.nothing == 1", want: []string{"spec.validations[0].expression", "apps/v1, Kind=Deployment: ERROR: <input>:1:40: undefined field 'nothing'"}},
		{name: "another type", expression: "object.spec.replicas > '1'", message: "'x' + object.spec.replicas",
			want: []string{"spec.validations[0].expression", "no matching overload for '_>_' applied to '(int, string)'", "spec.validations[0].messageExpression", "no matching overload"}},
		{name: "a variable", expression: "variables.n > 1 && variables.n == 'x'", variables: []admissionregistrationv1.Variable{{Name: "n", Expression: "object.spec.replicas"}},
			want: []string{"spec.validations[0].expression", "no matching overload for '_==_' applied to '(int, string)'"}},
		{name: "a parameter", expression: "params.data.x == 'y' && params.nothing", params: &admissionregistrationv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
			want: []string{"spec.validations[0].expression", "undefined field 'nothing'"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := control.New(t)
				control.Run(t, policystatus.New(c, schemas.SchemaOf, slog.New(slog.DiscardHandler)))
				p := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
					ParamKind: x.params, Variables: x.variables,
					MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
						Operations: []admissionregistrationv1.OperationType{"CREATE"}, Rule: admissionregistrationv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}}}}}},
					Validations: []admissionregistrationv1.Validation{{Expression: x.expression, MessageExpression: x.message}},
				}}
				if _, err := policies.Create(t.Context(), c, p); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				p, err := policies.Get(t.Context(), c, "", "p")
				if err != nil {
					t.Fatal(err)
				}
				if p.Status.ObservedGeneration != 1 || p.Status.TypeChecking == nil {
					t.Fatalf("status %+v", p.Status)
				}
				var got []string
				for _, w := range p.Status.TypeChecking.ExpressionWarnings {
					got = append(got, w.FieldRef, w.Warning)
				}
				if len(got) != len(x.want) {
					t.Fatalf("got %q, want %q", got, x.want)
				}
				for i := range got {
					if !strings.Contains(got[i], x.want[i]) {
						t.Errorf("got %q, want %q", got[i], x.want[i])
					}
				}
			})
		})
	}
}
