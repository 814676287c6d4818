package scheduler

import (
	"context"

	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
)

type schedulingClass = schedulingv1.PriorityClass

func (g ground) class(name string, value int32, change ...func(*schedulingClass)) {
	g.Helper()
	c := &schedulingClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
	for _, f := range change {
		f(c)
	}
	if _, err := client.PriorityClasses.Create(g.Context(), g.c, c); err != nil {
		g.Fatal(err)
	}
}

// part is a function as a component.
type part struct {
	name string
	run  func(context.Context) error
}

func (p part) Name() string                  { return p.name }
func (p part) Run(ctx context.Context) error { return p.run(ctx) }
