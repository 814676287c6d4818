package admission

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/quota"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

var resourceQuotasGVR = corev1.SchemeGroupVersion.WithResource("resourcequotas")

const (
	quotaAttempts = 16               // lost races against other writers of a quota
	quotaTime     = 10 * time.Second // as long as Kubernetes waits
)

// ResourceQuota charges each write to the quotas of its namespace before it
// happens, and takes the charge back when it does not. Writes to one namespace
// that arrive together are charged in one update of each quota.
type ResourceQuota struct {
	reader     Reader
	evaluators quota.Evaluators
	update     func(ctx context.Context, q *corev1.ResourceQuota) (*corev1.ResourceQuota, error)
	quotas     func() (any, int)

	mu     sync.Mutex
	spaces map[string]*quotaSpace
}

// quotaSpace is a namespace in which something is being charged.
type quotaSpace struct {
	waiting []*quotaCharge
	// revisions is, for each quota (by UID), the last revision that a charge made, and
	// how often another writer came in between: what they computed includes no
	// charge that can still be taken back.
	revisions map[string]quotaRevision
	busy      bool
}

type quotaRevision struct {
	last  string
	epoch int
}

// quotaCharge is a write that waits to be charged.
type quotaCharge struct {
	a      *rest.Attributes
	charge *quota.Charge // nil: refund
	done   chan struct{} // closed when it is settled
	lead   chan struct{} // closed when it is its turn to settle what waits
	err    error
	// paid is what each quota was charged, and in which epoch.
	paid map[string]quotaPayment
}

func newQuotaCharge(a *rest.Attributes, c *quota.Charge, paid map[string]quotaPayment) *quotaCharge {
	return &quotaCharge{a: a, charge: c, paid: paid, done: make(chan struct{}), lead: make(chan struct{})}
}

type quotaPayment struct {
	amount corev1.ResourceList
	epoch  int
}

// NewResourceQuota returns the plugin; update writes a quota's status.
func NewResourceQuota(reader Reader, now func() time.Time, update func(context.Context, *corev1.ResourceQuota) (*corev1.ResourceQuota, error)) *ResourceQuota {
	return &ResourceQuota{reader: reader, update: update, evaluators: quota.Evaluators{Reader: reader, Now: now},
		quotas: versionOf(reader, resourceQuotasGVR), spaces: map[string]*quotaSpace{}}
}

func (p *ResourceQuota) Validate(ctx context.Context, a *rest.Attributes) error {
	if _, n := p.quotas(); n == 0 || a.Namespace == "" || !a.Resource.Namespaced || a.Verb != rest.Create && a.Verb != rest.Update {
		return nil
	}
	e := p.evaluators.Of(a.Resource.GVR.GroupResource())
	if e == nil {
		return nil
	}
	obj, ok := a.Object.(api.Object)
	if !ok {
		return nil
	}
	w := quota.Write{Update: a.Verb == rest.Update, Subresource: a.Subresource, Object: obj, Old: a.Old}
	if w.Update && w.Old == nil || !e.Charges(w) {
		return nil
	}
	quotas := p.reader.List(resourceQuotasGVR, a.Namespace)
	if len(quotas) == 0 {
		return nil
	}
	c, err := quota.NewCharge(e, w)
	if err != nil {
		return apierrors.NewForbidden(a.Resource.GVR.GroupResource(), a.Name, err)
	}
	// Most writes to a namespace with quotas concern none of them.
	concerned := false
	for _, q := range quotas {
		amount, err := c.To(q.(*corev1.ResourceQuota))
		concerned = concerned || err != nil || len(amount) > 0
	}
	if !concerned {
		return nil
	}
	q := newQuotaCharge(a, c, nil)
	p.run(ctx, a.Namespace, q)
	if q.err == nil && len(q.paid) > 0 {
		a.OnFailure(func(ctx context.Context) {
			p.run(ctx, a.Namespace, newQuotaCharge(a, nil, q.paid))
		})
	}
	return q.err
}

// run has q settled: by whoever is at it in the namespace, or else by itself
// along with what arrived meanwhile.
func (p *ResourceQuota) run(ctx context.Context, namespace string, q *quotaCharge) {
	p.mu.Lock()
	s := p.spaces[namespace]
	if s == nil {
		s = &quotaSpace{revisions: map[string]quotaRevision{}}
		p.spaces[namespace] = s
	}
	s.waiting = append(s.waiting, q)
	if s.busy {
		p.mu.Unlock()
		select { // bounded: each round has quotaTime
		case <-q.done:
			return
		case <-q.lead:
		}
		p.mu.Lock()
	}
	s.busy = true
	batch := s.waiting
	s.waiting = nil
	p.mu.Unlock()
	if refunds := p.settle(ctx, namespace, s, batch); len(refunds) > 0 {
		p.settle(ctx, namespace, s, refunds)
	}
	for _, c := range batch {
		close(c.done)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(s.waiting) > 0 {
		close(s.waiting[0].lead)
		return
	}
	s.busy = false
	if len(p.reader.List(resourceQuotasGVR, namespace)) == 0 {
		delete(p.spaces, namespace)
	}
}

// settle charges a batch: every charge that fits into all quotas is added to
// them, in order of arrival; the others get their error. It returns what has to
// be taken back, because only some of a charge's quotas could be charged.
func (p *ResourceQuota) settle(ctx context.Context, namespace string, s *quotaSpace, batch []*quotaCharge) (refunds []*quotaCharge) {
	// The leader works for others, too: its client's leaving must not fail them.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quotaTime)
	defer cancel()
	settled := map[string]bool{} // quotas whose charges of this batch are written
	var failed error
	for range quotaAttempts {
		failed = nil
		var quotas []*corev1.ResourceQuota
		for _, obj := range p.reader.List(resourceQuotasGVR, namespace) {
			if q := obj.(*corev1.ResourceQuota); !settled[string(q.UID)] {
				quotas = append(quotas, q.DeepCopy())
			}
		}
		changed := p.addUp(s, quotas, batch)
		for i, q := range quotas {
			if !changed[i] {
				continue
			}
			id := string(q.UID)
			switch written, err := p.update(ctx, q); {
			case err == nil:
				s.revisions[id] = quotaRevision{last: written.ResourceVersion, epoch: s.revisions[id].epoch}
				settled[id] = true
			case apierrors.IsNotFound(err): // a quota that is gone limits nothing
				delete(s.revisions, id)
			default:
				failed = err
			}
		}
		if failed == nil || ctx.Err() != nil || !apierrors.IsConflict(failed) {
			break
		}
	}
	for _, c := range batch {
		if c.charge == nil {
			continue
		}
		if failed != nil && c.err == nil && len(c.paid) > 0 {
			c.err = apierrors.NewInternalError(fmt.Errorf("charge the resource quotas of namespace %s: %w", namespace, failed))
		}
		for id := range c.paid {
			if !settled[id] {
				delete(c.paid, id)
			}
		}
		if c.err != nil && len(c.paid) > 0 {
			refunds = append(refunds, &quotaCharge{a: c.a, paid: c.paid})
		}
	}
	return refunds
}

// addUp adds the charges of a batch to the usage of quotas and says which of them changed.
func (p *ResourceQuota) addUp(s *quotaSpace, quotas []*corev1.ResourceQuota, batch []*quotaCharge) []bool {
	changed := make([]bool, len(quotas))
	for _, q := range quotas {
		id := string(q.UID)
		if r, ok := s.revisions[id]; ok && r.last != q.ResourceVersion {
			s.revisions[id] = quotaRevision{last: q.ResourceVersion, epoch: r.epoch + 1}
		}
	}
	amounts := make([]corev1.ResourceList, len(quotas))
next:
	for _, c := range batch {
		if c.err != nil {
			continue
		}
		if c.charge == nil {
			for i, q := range quotas {
				if paid, ok := c.paid[string(q.UID)]; ok && paid.epoch == s.revisions[string(q.UID)].epoch {
					q.Status.Used = quota.Subtract(q.Status.Used, paid.amount)
					changed[i] = true
				}
			}
			continue
		}
		for i, q := range quotas {
			amount, err := c.charge.To(q)
			if err != nil {
				c.err = apierrors.NewForbidden(c.a.Resource.GVR.GroupResource(), c.a.Name, err)
				continue next
			}
			amounts[i] = amount
		}
		if c.a.DryRun {
			continue
		}
		for i, q := range quotas {
			if len(amounts[i]) == 0 {
				continue
			}
			q.Status.Used = quota.Add(q.Status.Used, amounts[i])
			changed[i] = true
			if c.paid == nil {
				c.paid = map[string]quotaPayment{}
			}
			c.paid[string(q.UID)] = quotaPayment{amount: amounts[i], epoch: s.revisions[string(q.UID)].epoch}
		}
	}
	return changed
}
