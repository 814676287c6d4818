package quota

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// Charge is what one write adds to the usage of a namespace's quotas.
type Charge struct {
	evaluator Evaluator
	write     Write
	usage     corev1.ResourceList
	added     corev1.ResourceList // on an update: beyond what the object has
}

// NewCharge measures a write. Its errors are reasons to refuse the write.
func NewCharge(e Evaluator, w Write) (*Charge, error) {
	c := &Charge{evaluator: e, write: w, usage: e.Usage(w.Object)}
	for _, q := range c.usage {
		if q.Sign() < 0 {
			var negative []corev1.ResourceName
			for name, q := range c.usage {
				if q.Sign() < 0 {
					negative = append(negative, name)
				}
			}
			return nil, fmt.Errorf("quota usage is negative for resource(s): %s", joined(negative))
		}
	}
	c.added = c.usage
	if w.Update {
		c.added = Subtract(c.usage, e.Usage(w.Old))
	}
	return c, nil
}

// To returns what a quota is charged (nil: nothing), or why the write must be refused.
func (c *Charge) To(q *corev1.ResourceQuota) (corev1.ResourceList, error) {
	counted := c.evaluator.Counts(namesOf(q.Status.Hard))
	if len(counted) == 0 {
		return nil, nil
	}
	in, err := inScopes(c.evaluator, q, c.write.Object)
	if err != nil {
		return nil, fmt.Errorf("error matching scopes of quota %s, err: %w", q.Name, err)
	}
	if !in {
		return nil, nil
	}
	if err := c.evaluator.Require(counted, c.write.Object); err != nil {
		return nil, fmt.Errorf("failed quota: %s: %w", q.Name, err)
	}
	for _, name := range counted {
		if _, known := q.Status.Used[name]; !known {
			return nil, fmt.Errorf("status unknown for quota: %s, resources: %s", q.Name, joined(counted))
		}
	}
	amount := c.usage
	if c.write.Update {
		was, err := inScopes(c.evaluator, q, c.write.Old)
		if err != nil {
			return nil, fmt.Errorf("error matching scopes of quota %s, err: %w", q.Name, err)
		}
		if was {
			amount = c.added
		}
	}
	amount = only(amount, q.Status.Hard)
	if len(amount) == 0 {
		return nil, nil
	}
	if c.write.Subresource == "status" {
		return amount, nil // what has happened is charged, whatever the limit
	}
	var exceeded []corev1.ResourceName
	for name, more := range amount {
		sum := q.Status.Used[name].DeepCopy()
		sum.Add(more)
		if sum.Cmp(q.Status.Hard[name]) > 0 {
			exceeded = append(exceeded, name)
		}
	}
	if len(exceeded) > 0 {
		return nil, fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s", q.Name,
			text(pick(amount, exceeded)), text(pick(q.Status.Used, exceeded)), text(pick(q.Status.Hard, exceeded)))
	}
	return amount, nil
}
