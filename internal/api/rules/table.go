package rules

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Unknown and None are what cells say when there is nothing to show.
const (
	Unknown = "<unknown>"
	None    = "<none>"
	Unset   = "<unset>"
)

// Name, Age and CreatedAt are the columns that return in nearly every table.
func Name() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
}

func Age() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: "Age", Type: "string",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]}
}

func CreatedAt() metav1.TableColumnDefinition {
	c := Age()
	c.Name, c.Type, c.Format = "Created At", "date", ""
	return c
}

// Text, Integer, Boolean and Wide define a column; Wide ones show with -o wide only.
func Text(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

func Integer(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "integer", Description: description}
}

func Boolean(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "boolean", Description: description}
}

func Wide(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Priority: 1, Description: description}
}

// Created is an object's age; Since that of any time.
func Created(obj metav1.Object) string { return Since(obj.GetCreationTimestamp()) }

func Since(t metav1.Time) string {
	if t.IsZero() {
		return Unknown
	}
	return duration.HumanDuration(time.Since(t.Time))
}

// Timestamp is the cell of a CreatedAt column.
func Timestamp(obj metav1.Object) string {
	t := obj.GetCreationTimestamp()
	if t.IsZero() {
		return Unknown
	}
	return t.UTC().Format(time.RFC3339)
}

// PodColumns are the wide columns of everything that has a pod template.
func PodColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		Wide("Containers", "Names of each container in the template."),
		Wide("Images", "Images referenced by each container in the template."),
		Wide("Selector", "Label selector that selects the pods."),
	}
}

// PodCells are the cells of PodColumns.
func PodCells(spec *corev1.PodSpec, selector *metav1.LabelSelector) []any {
	names := make([]string, len(spec.Containers))
	images := make([]string, len(spec.Containers))
	for i := range spec.Containers {
		names[i], images[i] = spec.Containers[i].Name, spec.Containers[i].Image
	}
	return []any{strings.Join(names, ","), strings.Join(images, ","), metav1.FormatLabelSelector(selector)}
}

// Or is the value behind p, or otherwise when there is none.
func Or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// First shows the first few of a list, and how many more there are.
func First(list []string, limit int) string {
	if len(list) == 0 {
		return None
	}
	if len(list) <= limit {
		return strings.Join(list, ",")
	}
	return strings.Join(list[:limit], ",") + " + " + itoa(len(list)-limit) + " more..."
}
