package core

import (
	"crypto/tls"
	"encoding/json"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/rules"
)

func secret() *api.Resource {
	k := api.Kind[*corev1.Secret]{Resource: rules.Namespaced[corev1.Secret, corev1.SecretList](gv, "secrets")}
	k.Resource.UnconditionalUpdate = true
	k.Default = func(o *corev1.Secret) {
		zero(&o.Type, corev1.SecretTypeOpaque)
		// stringData is for writers only: it is folded into data.
		if len(o.StringData) > 0 && o.Data == nil {
			o.Data = make(map[string][]byte, len(o.StringData))
		}
		for key, v := range o.StringData {
			o.Data[key] = []byte(v)
		}
		o.StringData = nil
	}
	k.Validate = validateSecret
	k.ValidateUpdate = func(o, old *corev1.Secret) field.ErrorList {
		errs := validation.ValidateImmutableField(o.Type, old.Type, field.NewPath("type"))
		if old.Immutable != nil && *old.Immutable {
			errs = append(errs, staysImmutable(o.Immutable)...)
			if !apiequality.Semantic.DeepEqual(o.Data, old.Data) {
				errs = append(errs, field.Forbidden(field.NewPath("data"), whenImmutable))
			}
		}
		return append(errs, validateSecret(o)...)
	}
	k.Warnings = func(o *corev1.Secret) []string {
		if o.Type != corev1.SecretTypeTLS {
			return nil
		}
		if _, err := tls.X509KeyPair(o.Data[corev1.TLSCertKey], o.Data[corev1.TLSPrivateKeyKey]); err != nil {
			return []string{err.Error()}
		}
		return nil
	}
	k.Fields = func(o *corev1.Secret) fields.Set { return fields.Set{"type": string(o.Type)} }
	k.Resource.FieldLabels = []string{"type"}
	doc := corev1.Secret{}.SwaggerDoc()
	k.Resource.Columns = []metav1.TableColumnDefinition{rules.Name(), rules.Text("Type", doc["type"]), rules.Text("Data", doc["data"]), rules.Age()}
	k.Row = func(o *corev1.Secret) []any {
		return []any{o.Name, string(o.Type), int64(len(o.Data)), rules.Created(o)}
	}
	return k.Erase()
}

func validateSecret(o *corev1.Secret) (errs field.ErrorList) {
	data := field.NewPath("data")
	size := 0
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		errs = append(errs, dataKey(data.Key(key), key)...)
		size += len(o.Data[key])
	}
	if size > maxData {
		errs = append(errs, field.TooLong(data, "", maxData))
	}
	has := func(key string) {
		if _, ok := o.Data[key]; !ok {
			errs = append(errs, field.Required(data.Key(key), ""))
		}
	}
	isJSON := func(key string) {
		value, ok := o.Data[key]
		if !ok {
			errs = append(errs, field.Required(data.Key(key), ""))
		} else if err := json.Unmarshal(value, &map[string]any{}); err != nil {
			errs = append(errs, field.Invalid(data.Key(key), "<secret contents redacted>", err.Error()))
		}
	}
	switch o.Type {
	case corev1.SecretTypeServiceAccountToken:
		if o.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
	case corev1.SecretTypeDockercfg:
		isJSON(corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		isJSON(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth: // one of both suffices
		_, user := o.Data[corev1.BasicAuthUsernameKey]
		_, password := o.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			has(corev1.BasicAuthUsernameKey)
			has(corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(o.Data[corev1.SSHAuthPrivateKey]) == 0 {
			errs = append(errs, field.Required(data.Key(corev1.SSHAuthPrivateKey), ""))
		}
	case corev1.SecretTypeTLS:
		has(corev1.TLSCertKey)
		has(corev1.TLSPrivateKeyKey)
	}
	return errs
}
