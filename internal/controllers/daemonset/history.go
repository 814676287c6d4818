package daemonset

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/revision"
)

// revisions finds the revision of the present template, or makes it, and those of
// older ones.
func (p *pass) revisions(ctx context.Context, selector labels.Selector) error {
	list, err := p.history.Of(ctx, p.set, selector, p.live)
	if err != nil {
		return fmt.Errorf("claim the revisions of daemon set %s: %w", p.key, err)
	}
	data, err := p.templates.Data(p.key, p.set, &p.set.Spec.Template)
	if err != nil {
		return err
	}
	var same []*appsv1.ControllerRevision
	for _, r := range list {
		if r.Labels[revision.PodLabel] == "" {
			r = r.DeepCopy()
			r.Labels[revision.PodLabel] = r.Name
			if r, err = client.ControllerRevisions.Update(ctx, p.client, r); err != nil {
				return fmt.Errorf("label a revision of daemon set %s: %w", p.key, err)
			}
		}
		if revision.Equal(r, data) {
			same = append(same, r)
		} else {
			p.old = append(p.old, r)
		}
	}
	next := revision.Next(p.old)
	if len(same) == 0 {
		p.current, err = p.history.Create(ctx, p.set, p.set.Spec.Template.Labels, data, next, p.set.Status.CollisionCount)
		if errors.Is(err, revision.ErrCollision) {
			return errors.Join(err, p.raiseCollisions(ctx))
		}
	} else {
		p.current = same[len(same)-1]
		if err = p.unify(ctx, same); err == nil && p.current.Revision < next {
			p.current, err = p.history.Renumber(ctx, p.current, next)
		}
	}
	if err != nil {
		return err
	}
	p.hash = p.current.Labels[revision.PodLabel]
	return nil
}

// unify leaves one of several revisions of the same template.
func (p *pass) unify(ctx context.Context, same []*appsv1.ControllerRevision) error {
	if len(same) == 1 {
		return nil
	}
	hash := p.current.Labels[revision.PodLabel]
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{revision.PodLabel: hash}}})
	if err != nil {
		return err
	}
	twins := map[string]bool{}
	for _, r := range same {
		twins[r.Labels[revision.PodLabel]] = true
	}
	for _, pod := range p.pods {
		if h := pod.Labels[revision.PodLabel]; h == hash || !twins[h] {
			continue
		}
		if _, err := client.Pods.Patch(ctx, p.client, pod.Namespace, pod.Name, "", types.MergePatchType, patch); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("relabel pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	for _, r := range same[:len(same)-1] {
		if err := p.history.Delete(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// raiseCollisions makes the next pass choose another name.
func (p *pass) raiseCollisions(ctx context.Context) error {
	fresh, err := client.DaemonSets.Get(ctx, p.client, p.key.Namespace, p.key.Name)
	if err != nil {
		return err
	}
	count := int32(1)
	if p.set.Status.CollisionCount != nil {
		count += *p.set.Status.CollisionCount
	}
	fresh.Status.CollisionCount = &count
	_, err = client.DaemonSets.UpdateStatus(ctx, p.client, fresh)
	return err
}

// trim deletes revisions beyond the limit that no pod is of.
func (p *pass) trim(ctx context.Context) error {
	limit := 10
	if p.set.Spec.RevisionHistoryLimit != nil {
		limit = int(*p.set.Spec.RevisionHistoryLimit)
	}
	if len(p.old) <= limit {
		return nil
	}
	live := map[string]bool{}
	for _, pod := range p.pods {
		if h := pod.Labels[revision.PodLabel]; h != "" {
			live[h] = true
		}
	}
	return p.history.Trim(ctx, p.old, limit, live)
}
