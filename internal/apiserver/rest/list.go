package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
)

// matcher is a request's selectors: what an index answers is in scope, the rest is asked of each object.
type matcher struct {
	s      *storage
	scope  cache.Scope
	labels labels.Selector
	fields fields.Requirements
	set    bool // fields need the resource's own set
	none   bool // nothing can match
	empty  bool // the client set no selector
}

const (
	nameField      = "metadata.name"
	namespaceField = "metadata.namespace"
)

func (s *storage) matcher(namespace string, ls labels.Selector, fs fields.Selector) (*matcher, error) {
	m := &matcher{s: s, empty: true}
	if s.res.Namespaced {
		m.scope.Namespace = namespace
	}
	if ls != nil && !ls.Empty() {
		m.labels, m.empty = ls, false
	}
	if fs == nil || fs.Empty() {
		return m, nil
	}
	m.empty = false
	m.fields = fs.Requirements()
	for _, r := range m.fields {
		if err := s.checkFieldLabel(r.Field); err != nil {
			return nil, err
		}
		equals := r.Operator == selection.Equals || r.Operator == selection.DoubleEquals
		switch {
		case r.Field == nameField:
			if equals {
				m.scope.Name = r.Value
			}
		case r.Field == namespaceField:
			if equals && s.res.Namespaced {
				if m.scope.Namespace != "" && m.scope.Namespace != r.Value {
					m.none = true
				}
				m.scope.Namespace = r.Value
			}
		default:
			m.set = true
			if equals && r.Field == s.indexField && r.Value != "" {
				m.scope.Index = r.Value
			}
		}
	}
	return m, nil
}

func (s *storage) checkFieldLabel(label string) error {
	switch label {
	case nameField:
		return nil
	case namespaceField:
		if s.res.Namespaced {
			return nil
		}
	}
	for _, l := range s.res.FieldLabels {
		if l == label {
			return nil
		}
	}
	return apierrors.NewBadRequest("field label not supported: " + label)
}

// matches asks an object, in the version of the request.
func (m *matcher) matches(e *cache.Entry) (bool, error) {
	if m.none {
		return false, nil
	}
	if m.empty && m.scope == (cache.Scope{}) {
		return true, nil
	}
	obj := e.Object()
	if m.scope.Namespace != "" && obj.GetNamespace() != m.scope.Namespace {
		return false, nil
	}
	if m.scope.Name != "" && obj.GetName() != m.scope.Name {
		return false, nil
	}
	if m.labels != nil && !m.labels.Matches(labels.Set(obj.GetLabels())) {
		return false, nil
	}
	if len(m.fields) == 0 {
		return true, nil
	}
	var set fields.Set
	if m.set && m.s.res.Fields != nil {
		if m.s.view != nil {
			v, err := m.s.see(e)
			if err != nil {
				return false, err
			}
			obj = v.Object()
		}
		set = m.s.res.Fields(obj)
	}
	for _, r := range m.fields {
		if !requirementHolds(r, obj, set) {
			return false, nil
		}
	}
	return true, nil
}

func requirementHolds(r fields.Requirement, obj api.Object, set fields.Set) bool {
	var have string
	switch r.Field {
	case nameField:
		have = obj.GetName()
	case namespaceField:
		have = obj.GetNamespace()
	default:
		have = set[r.Field]
	}
	return (have == r.Value) == (r.Operator != selection.NotEquals)
}

// continueToken is where the next page starts.
type continueToken struct {
	Version   string `json:"v"`
	Revision  int64  `json:"rv"` // -1: whatever is newest
	Start     string `json:"start"`
	Remaining int64  `json:"left,omitempty"` // how many the pages after have; only without selectors
}

const tokenVersion = "meta.k8s.io/v1"

func (t continueToken) String() string {
	t.Version = tokenVersion
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and numbers
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseContinue(s string) (continueToken, error) {
	var t continueToken
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return t, apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
	}
	switch {
	case t.Version != tokenVersion:
		return t, apierrors.NewBadRequest("invalid continue token: server does not recognize this encoded version " + fmt.Sprintf("%q", t.Version))
	case t.Revision == 0 || t.Revision < -1:
		return t, apierrors.NewBadRequest("invalid continue token: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
	case t.Start == "":
		return t, apierrors.NewBadRequest("invalid continue token: encoded start key empty (version meta.k8s.io/v1)")
	case strings.HasPrefix(t.Start, "/") || strings.Contains(t.Start, "/../") || strings.HasPrefix(t.Start, "../"):
		return t, apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %q", t.Start))
	}
	return t, nil
}

func (s *storage) List(ctx context.Context, namespace string, opts ListOptions) (*ListResult, error) {
	if err := checkListOptions(&opts.ListOptions, false); err != nil {
		return nil, err
	}
	m, err := s.matcher(namespace, opts.Labels, opts.Fields)
	if err != nil {
		return nil, err
	}
	var token continueToken
	var snap *cache.Snapshot
	var revision int64
	if opts.Continue != "" {
		if token, err = parseContinue(opts.Continue); err != nil {
			return nil, err
		}
		snap, revision, err = s.continued(ctx, token)
	} else {
		snap, revision, err = s.snapshot(ctx, &opts)
	}
	if err != nil {
		return nil, err
	}
	return s.page(m, snap, revision, token, int(opts.Limit))
}

// snapshot returns the state that a list's resourceVersion asks for.
func (s *storage) snapshot(ctx context.Context, opts *ListOptions) (*cache.Snapshot, int64, error) {
	wanted, err := parseRevision(opts.ResourceVersion)
	if err != nil {
		return nil, 0, err
	}
	exact := opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact ||
		(opts.ResourceVersionMatch == "" && opts.Limit > 0 && wanted > 0)
	if !exact {
		if err := s.waitFor(ctx, opts.ResourceVersion); err != nil {
			return nil, 0, err
		}
		snap, revision := s.cache.Read()
		return snap, revision, nil
	}
	if err := s.waitRevision(ctx, wanted); err != nil {
		return nil, 0, err
	}
	snap, err := s.cache.Historic(ctx, wanted)
	if err != nil {
		return nil, 0, s.storeError(expired(err), "")
	}
	return snap, wanted, nil
}

// continued returns the state that the pages of a list come from.
func (s *storage) continued(ctx context.Context, token continueToken) (*cache.Snapshot, int64, error) {
	if token.Revision == -1 {
		if err := s.waitFor(ctx, ""); err != nil {
			return nil, 0, err
		}
		snap, revision := s.cache.Read()
		return snap, revision, nil
	}
	if err := s.waitRevision(ctx, token.Revision); err != nil {
		return nil, 0, err
	}
	// Tokens expire with their revision even where nothing has changed since:
	// clients may rely on it (conformance: lists from the last key).
	err := s.cache.Kept(ctx, token.Revision)
	if err == nil {
		var snap *cache.Snapshot
		if snap, err = s.cache.Historic(ctx, token.Revision); err == nil {
			return snap, token.Revision, nil
		}
	}
	if err = expired(err); apierrors.IsResourceExpired(err) {
		e := apierrors.NewResourceExpired("The provided continue parameter is too old " +
			"to display a consistent list result. You can start a new list without " +
			"the continue parameter, or use the continue token in this response to " +
			"retrieve the remainder of the results. Continuing with the provided " +
			"token results in an inconsistent list - objects that were created, " +
			"modified, or deleted between the time the first chunk was returned " +
			"and now may show up in the list.")
		e.ErrStatus.ListMeta.Continue = continueToken{Revision: -1, Start: token.Start}.String()
		return nil, 0, e
	}
	return nil, 0, s.storeError(err, "")
}

// page collects what matches, up to limit.
func (s *storage) page(m *matcher, snap *cache.Snapshot, revision int64, token continueToken, limit int) (*ListResult, error) {
	res := &ListResult{Revision: revision}
	from := ""
	if token.Start != "" {
		from = s.cache.Prefix("") + token.Start
	}
	if m.empty && m.scope.Namespace == "" && limit == 0 && from == "" {
		res.Entries = make([]*cache.Entry, 0, snap.Len())
	}
	var (
		failed error
		more   bool
		left   int64
		count  = m.empty && token.Remaining == 0 // else the token knows
		total  = m.empty && m.scope.Namespace == "" && from == ""
		// Converting by a webhook is one call for all.
		together = s.view != nil && s.view.ConvertAll != nil
	)
	if !m.none {
		snap.Scan(m.scope, from, func(e *cache.Entry) bool {
			if more { // only counting what is left
				left++
				return true
			}
			if !m.empty { // else the scan's scope is all that was asked for
				ok, err := m.matches(e)
				if err != nil {
					failed = err
					return false
				}
				if !ok {
					return true
				}
			}
			if limit > 0 && len(res.Entries) == limit {
				more, left = true, 1
				if total {
					left = int64(snap.Len() - limit)
					return false
				}
				return count
			}
			if !together {
				if e, failed = s.see(e); failed != nil {
					return false
				}
			}
			res.Entries = append(res.Entries, e)
			return true
		})
	}
	if failed == nil && together {
		res.Entries, failed = s.seeAll(res.Entries)
	}
	if failed != nil {
		return nil, failed
	}
	if !more {
		return res, nil
	}
	if m.empty && !count {
		left = token.Remaining - int64(len(res.Entries))
	}
	next := continueToken{Revision: revision, Start: strings.TrimPrefix(res.Entries[limit-1].Key, s.cache.Prefix("")) + "\x00"}
	if m.empty && left > 0 {
		res.RemainingItemCount = &left
		next.Remaining = left
	}
	if token.Revision == -1 {
		next.Revision = -1 // stays inconsistent; only the first page's revision was one
	}
	res.Continue = next.String()
	s.cache.Pin(revision, snap)
	return res, nil
}

// checkListOptions refuses combinations that mean nothing.
func checkListOptions(o *metav1.ListOptions, watch bool) error {
	var errs field.ErrorList
	match := field.NewPath("resourceVersionMatch")
	switch {
	case watch && o.SendInitialEvents == nil && o.ResourceVersionMatch != "":
		errs = append(errs, field.Forbidden(match, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"))
	case watch && o.SendInitialEvents != nil && o.ResourceVersionMatch != metav1.ResourceVersionMatchNotOlderThan:
		errs = append(errs, field.Forbidden(match, fmt.Sprintf("sendInitialEvents requires setting resourceVersionMatch to %s", metav1.ResourceVersionMatchNotOlderThan)))
	case watch:
	case o.SendInitialEvents != nil:
		errs = append(errs, field.Forbidden(field.NewPath("sendInitialEvents"), "sendInitialEvents is forbidden for list"))
	case o.ResourceVersionMatch == "":
	case o.ResourceVersion == "":
		errs = append(errs, field.Forbidden(match, "resourceVersionMatch is forbidden unless resourceVersion is provided"))
	case o.Continue != "":
		errs = append(errs, field.Forbidden(match, "resourceVersionMatch is forbidden when continue is provided"))
	case o.ResourceVersionMatch != metav1.ResourceVersionMatchExact && o.ResourceVersionMatch != metav1.ResourceVersionMatchNotOlderThan:
		errs = append(errs, field.NotSupported(match, o.ResourceVersionMatch, []metav1.ResourceVersionMatch{metav1.ResourceVersionMatchExact, metav1.ResourceVersionMatchNotOlderThan, ""}))
	case o.ResourceVersionMatch == metav1.ResourceVersionMatchExact && o.ResourceVersion == "0":
		errs = append(errs, field.Forbidden(match, `resourceVersionMatch "exact" is forbidden for resourceVersion "0"`))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", errs)
	}
	if !watch && o.Continue != "" && o.ResourceVersion != "" && o.ResourceVersion != "0" {
		return apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	return nil
}
