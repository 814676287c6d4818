package statefulset

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/controllers/revision"
)

// collisionsMost bounds the names that one pass tries.
const collisionsMost = 10

// revise finds the revisions that pods are to have: update is that of the present
// template, current the one that was complete last.
func (p *pass) revise(ctx context.Context, selector labels.Selector) error {
	list, err := p.history.Of(ctx, p.set, selector, p.live)
	if err != nil {
		return fmt.Errorf("claim the revisions of stateful set %s: %w", p.key, err)
	}
	if p.set.Status.CollisionCount != nil {
		p.collisions = *p.set.Status.CollisionCount
	}
	data, err := p.templates.Data(p.key, p.set, &p.set.Spec.Template)
	if err != nil {
		return err
	}
	p.list = list
	if p.update, err = p.present(ctx, data); err != nil {
		return err
	}
	p.current = p.update
	for _, r := range list {
		if r.Name == p.set.Status.CurrentRevision {
			p.current = r
		}
	}
	return nil
}

// present finds or makes the revision that keeps data.
func (p *pass) present(ctx context.Context, data []byte) (*appsv1.ControllerRevision, error) {
	next := revision.Next(p.list)
	if n := len(p.list); n > 0 {
		if last := p.list[n-1]; revision.Equal(last, data) {
			return last, nil
		}
		for i := n - 2; i >= 0; i-- {
			if revision.Equal(p.list[i], data) {
				return p.history.Renumber(ctx, p.list[i], next) // a rollback
			}
		}
		if last := p.list[n-1]; same(last, data) {
			return last, nil
		}
	}
	for range collisionsMost {
		made, err := p.history.Create(ctx, p.set, p.set.Spec.Template.Labels, data, next, &p.collisions)
		if !errors.Is(err, revision.ErrCollision) {
			return made, err
		}
		p.collisions++
	}
	return nil, fmt.Errorf("stateful set %s: %w", p.key, revision.ErrCollision)
}

// same says that a revision keeps the same template in the words of an older
// version, which knew fewer defaults: that is no reason to restart pods.
func same(r *appsv1.ControllerRevision, data []byte) bool {
	t, err := revision.Template(r)
	if err != nil {
		return false
	}
	core.DefaultPodTemplate(t)
	now, err := revision.Data(t)
	return err == nil && bytes.Equal(now, data)
}

// template returns the template of the revision that a new pod of an ordinal is
// to have, and the revision's name.
func (p *pass) template(ordinal int) (*corev1.PodTemplateSpec, string, error) {
	old := false
	if p.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		if r := p.set.Spec.UpdateStrategy.RollingUpdate; r == nil {
			old = ordinal < first(p.set)+int(p.set.Status.CurrentReplicas)
		} else {
			old = ordinal < first(p.set)+p.partition()
		}
	}
	if !old || p.current.Name == p.update.Name {
		return &p.set.Spec.Template, p.update.Name, nil
	}
	t, err := revision.Template(p.current)
	return t, p.current.Name, err
}

func (p *pass) partition() int {
	if r := p.set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil {
		return int(*r.Partition)
	}
	return 0
}

// trim deletes revisions beyond the limit that nothing is of.
func (p *pass) trim(ctx context.Context) error {
	limit := 10
	if p.set.Spec.RevisionHistoryLimit != nil {
		limit = int(*p.set.Spec.RevisionHistoryLimit)
	}
	if len(p.list) <= limit {
		return nil
	}
	live := map[string]bool{p.current.Name: true, p.update.Name: true}
	for _, pod := range p.pods {
		live[versionOf(pod)] = true
	}
	var old []*appsv1.ControllerRevision
	for _, r := range p.list {
		if !live[r.Name] {
			old = append(old, r)
		}
	}
	return p.history.Trim(ctx, old, limit, nil)
}
