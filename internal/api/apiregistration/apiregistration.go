// Package apiregistration holds the rules of the API group
// apiregistration.k8s.io: which server answers for which group and version.
package apiregistration

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

const httpsPort = 443

// Resources returns the resources of the group.
func Resources() []*api.Resource {
	r := rules.Cluster[apiregistrationv1.APIService, apiregistrationv1.APIServiceList](apiregistrationv1.SchemeGroupVersion, "apiservices")
	r.Categories = []string{"api-extensions"}
	r.ValidateName = path.ValidatePathSegmentName
	r.Columns = []metav1.TableColumnDefinition{
		rules.Name(),
		rules.Text("Service", "The reference to the service that hosts this API endpoint."),
		rules.Text("Available", "Whether this service is available."),
		rules.Age(),
	}
	return []*api.Resource{api.Kind[*apiregistrationv1.APIService]{
		Resource: r,
		Default: func(s *apiregistrationv1.APIService) {
			if ref := s.Spec.Service; ref != nil {
				rules.Refer(&ref.Port, httpsPort)
			}
		},
		Validate:   validateService,
		CopyStatus: func(dst, src *apiregistrationv1.APIService) { dst.Status = *src.Status.DeepCopy() },
		PrepareForCreate: func(s *apiregistrationv1.APIService) {
			if s.Spec.Service == nil { // what this server answers itself is there at once
				s.Status.Conditions = []apiregistrationv1.APIServiceCondition{{
					Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, LastTransitionTime: metav1.Now(),
					Reason: "Local", Message: "Local APIServices are always available",
				}}
			}
		},
		Row: func(s *apiregistrationv1.APIService) []any {
			service, available := "Local", "Unknown"
			if ref := s.Spec.Service; ref != nil {
				service = ref.Namespace + "/" + ref.Name
			}
			for _, c := range s.Status.Conditions {
				if c.Type != apiregistrationv1.Available {
					continue
				}
				if available = string(c.Status); c.Status != apiregistrationv1.ConditionTrue {
					available = fmt.Sprintf("%s (%s)", c.Status, c.Reason)
				}
			}
			return []any{s.Name, service, available, rules.Created(s)}
		},
	}.Erase()}
}

func validateService(s *apiregistrationv1.APIService) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if want := s.Spec.Version + "." + s.Spec.Group; s.Name != want {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), s.Name, fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", want)))
	}
	if s.Spec.Group != "" {
		errs = append(errs, rules.Subdomain(s.Spec.Group, spec.Child("group"))...)
	} else if s.Spec.Version != "v1" {
		errs = append(errs, field.Required(spec.Child("group"), "only v1 may have an empty group and it better be legacy kube"))
	}
	if s.Spec.Version == "" {
		errs = append(errs, field.Required(spec.Child("version"), ""))
	} else {
		errs = append(errs, rules.Messages(s.Spec.Version, spec.Child("version"), validation.IsDNS1035Label(s.Spec.Version))...)
	}
	if n := s.Spec.GroupPriorityMinimum; n <= 0 || n > 20000 {
		errs = append(errs, field.Invalid(spec.Child("groupPriorityMinimum"), n, "must be positive and less than 20000"))
	}
	if n := s.Spec.VersionPriority; n <= 0 || n > 1000 {
		errs = append(errs, field.Invalid(spec.Child("versionPriority"), n, "must be positive and less than 1000"))
	}
	ref := s.Spec.Service
	if ref == nil {
		if len(s.Spec.CABundle) != 0 {
			errs = append(errs, field.Invalid(spec.Child("caBundle"), fmt.Sprintf("%d bytes", len(s.Spec.CABundle)), "local APIServices may not have a caBundle"))
		}
		if s.Spec.InsecureSkipTLSVerify {
			errs = append(errs, field.Invalid(spec.Child("insecureSkipTLSVerify"), s.Spec.InsecureSkipTLSVerify, "local APIServices may not have insecureSkipTLSVerify"))
		}
		return errs
	}
	errs = append(errs, rules.Required(ref.Namespace, spec.Child("service", "namespace"), "")...)
	errs = append(errs, rules.Required(ref.Name, spec.Child("service", "name"), "")...)
	port := rules.Or(ref.Port, httpsPort)
	errs = append(errs, rules.Messages(port, spec.Child("service", "port"), validation.IsValidPortNum(int(port)))...)
	if s.Spec.InsecureSkipTLSVerify && len(s.Spec.CABundle) > 0 {
		errs = append(errs, field.Invalid(spec.Child("insecureSkipTLSVerify"), s.Spec.InsecureSkipTLSVerify, "may not be true if caBundle is present"))
	}
	return errs
}
