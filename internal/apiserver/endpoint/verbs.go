package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// dispatch is the last stage: the answer.
func (q *request) dispatch() error {
	if !q.info.IsResourceRequest {
		if q.h.cfg.NonResource == nil {
			http.NotFound(&q.w, q.r)
			return nil
		}
		q.h.cfg.NonResource.ServeHTTP(&q.w, q.r.WithContext(q.ctx))
		return nil
	}
	gvr := q.info.GVR()
	if q.h.cfg.Delegate != nil {
		if next := q.h.cfg.Delegate(gvr.Group, gvr.Version); next != nil {
			next.ServeHTTP(&q.w, q.r.WithContext(q.ctx))
			return nil
		}
	}
	res, ok := q.h.cfg.Catalog.Resource(gvr)
	if !ok {
		return notServed()
	}
	q.res = res
	if res.Warning != "" {
		q.warn(res.Warning)
	}
	if err := q.checkScope(); err != nil {
		return err
	}
	if q.info.Subresource != "" {
		return q.subresource()
	}
	if q.info.Rest != "" && q.info.Rest != "/" {
		return notServed()
	}
	if len(res.Verbs) > 0 && !slices.Contains(res.Verbs, q.info.Verb) {
		return methodNotAllowed()
	}
	if reviewed(res) {
		return q.review()
	}
	if q.storage, ok = q.h.cfg.Registry.Storage(gvr); !ok {
		if res.GVR == bindingsGVR && q.info.Verb == "create" {
			return q.legacyBinding()
		}
		return notServed()
	}
	if q.r.Method == http.MethodHead {
		return methodNotAllowed()
	}
	switch q.info.Verb {
	case "get":
		return q.get()
	case "list":
		return q.list()
	case "watch":
		return q.watch()
	case "create":
		return q.create()
	case "update":
		return q.update("")
	case "patch":
		return q.patch("")
	case "delete":
		return q.delete()
	case "deletecollection":
		return q.deleteCollection()
	}
	return methodNotAllowed()
}

// checkScope refuses paths that no resource of this scope has.
func (q *request) checkScope() error {
	i := &q.info
	if !q.res.Namespaced {
		if i.Namespace != "" && !(i.Resource == "namespaces" && i.Group == "") {
			return notServed()
		}
	} else if i.Namespace == "" {
		switch {
		case i.Name != "":
			return notServed()
		case i.Verb == "list" || i.Verb == "watch":
		case i.Verb == "create" && len(q.res.Verbs) > 0 && reviewed(q.res):
			return notServed()
		default:
			return methodNotAllowed()
		}
	}
	if i.Subresource == "" && i.Name != "" && i.Verb == "create" || i.Name == "" && (i.Verb == "update" || i.Verb == "patch") {
		return methodNotAllowed()
	}
	return nil
}

func notServed() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource", Details: &metav1.StatusDetails{},
	}}
}

func methodNotAllowed() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusMethodNotAllowed, Reason: metav1.StatusReasonMethodNotAllowed,
		Message: "the server does not allow this method on the requested resource",
	}}
}

// form negotiates the answer of a verb on stored objects.
func (q *request) form(stream bool) (form, error) {
	_, proto := q.res.New().(protoMessage)
	return q.negotiate(formOptions{noProto: !proto, views: true, stream: stream})
}

func (q *request) get() error {
	f, err := q.form(false)
	if err != nil {
		return err
	}
	opts, err := q.getOptions()
	if err != nil {
		return err
	}
	e, err := q.storage.Get(q.ctx, q.info.Namespace, q.info.Name, opts)
	if err != nil {
		return err
	}
	return q.writeEntry(f, http.StatusOK, e)
}

func (q *request) list() error {
	f, err := q.form(false)
	if err != nil {
		return err
	}
	opts, err := q.listOptions()
	if err != nil {
		return err
	}
	l, err := q.storage.List(q.ctx, q.info.Namespace, opts)
	if err != nil {
		return err
	}
	return q.writeList(f, l.Entries, metaOf(l))
}

func (q *request) create() error {
	f, err := q.form(false)
	if err != nil {
		return err
	}
	opts, err := q.createOptions()
	if err != nil {
		return err
	}
	b, err := q.readBody(q.noProto())
	if err != nil {
		return err
	}
	obj, err := q.decode(b, q.res.GVK, opts.FieldValidation)
	if err != nil {
		return err
	}
	e, err := q.storage.Create(q.ctx, q.info.Namespace, obj, opts)
	if err != nil {
		return err
	}
	return q.writeEntry(f, http.StatusCreated, e)
}

func (q *request) noProto() bool {
	_, proto := q.res.New().(protoMessage)
	return !proto
}

func (q *request) update(subresource string) error {
	f, err := q.form(false)
	if err != nil {
		return err
	}
	opts, err := q.updateOptions()
	if err != nil {
		return err
	}
	b, err := q.readBody(q.noProto())
	if err != nil {
		return err
	}
	first, err := q.decode(b, q.res.GVK, opts.FieldValidation)
	if err != nil {
		return err
	}
	obj, ok := first.(api.Object)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("%s has no metadata", q.res.GVK.Kind))
	}
	switch name := obj.GetName(); name {
	case q.info.Name:
	case "":
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", q.info.Name))
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", name, q.info.Name))
	}
	if ns := obj.GetNamespace(); ns != "" && q.info.Namespace != "" && ns != q.info.Namespace && q.res.Namespaced {
		return apierrors.NewBadRequest(fmt.Sprintf("the namespace of the object (%s) does not match the namespace on the URL (%s)", ns, q.info.Namespace))
	}
	change := func(context.Context, api.Object) (api.Object, error) {
		if o := obj; o != nil {
			obj = nil // belongs to the storage from here on
			return o, nil
		}
		again, _, err := q.h.decoders.decode(b, q.res.GVK, q.custom(q.res.GVK), false)
		if err != nil {
			return nil, err
		}
		return again.(api.Object), nil
	}
	e, created, err := q.storage.Update(q.ctx, q.info.Namespace, q.info.Name, subresource, change, rest.UpdateOptions{UpdateOptions: opts})
	if err != nil {
		return err
	}
	return q.writeEntry(f, okOrCreated(created), e)
}

func okOrCreated(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

func (q *request) patch(subresource string) error {
	f, err := q.form(false)
	if err != nil {
		return err
	}
	kind, data, opts, err := q.readPatch()
	if err != nil {
		return err
	}
	e, created, err := q.storage.Patch(q.ctx, q.info.Namespace, q.info.Name, subresource, kind, data, opts)
	if err != nil {
		return err
	}
	return q.writeEntry(f, okOrCreated(created), e)
}

func (q *request) readPatch() (types.PatchType, []byte, metav1.PatchOptions, error) {
	kind, err := patchType(q.r, q.unstructured())
	if err != nil {
		return "", nil, metav1.PatchOptions{}, err
	}
	opts, err := q.patchOptions(types.PatchType(kind))
	if err != nil {
		return "", nil, opts, err
	}
	data, err := q.body()
	return types.PatchType(kind), data, opts, err
}

// returnsDeleted are the resources whose delete answers with the object; the
// others answer with a Status.
var returnsDeleted = map[schema.GroupResource]bool{
	{Resource: "pods"}:                                       true,
	{Resource: "podtemplates"}:                               true,
	{Resource: "persistentvolumes"}:                          true,
	{Resource: "persistentvolumeclaims"}:                     true,
	{Resource: "resourcequotas"}:                             true,
	{Resource: "serviceaccounts"}:                            true,
	{Resource: "services"}:                                   true,
	{Group: "storage.k8s.io", Resource: "storageclasses"}:    true,
	{Group: "storage.k8s.io", Resource: "csidrivers"}:        true,
	{Group: "storage.k8s.io", Resource: "csinodes"}:          true,
	{Group: "storage.k8s.io", Resource: "volumeattachments"}: true,
	{Group: "resource.k8s.io", Resource: "resourceclaims"}:   true,
	{Group: "resource.k8s.io", Resource: "deviceclasses"}:    true,
	{Group: "resource.k8s.io", Resource: "resourceslices"}:   true,
}

func (q *request) delete() error {
	f, err := q.form(false)
	if err != nil {
		return err
	}
	opts, err := q.deleteOptions()
	if err != nil {
		return err
	}
	e, gone, err := q.storage.Delete(q.ctx, q.info.Namespace, q.info.Name, opts)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if !gone && opts.OrphanDependents != nil && !*opts.OrphanDependents { //nolint:staticcheck // old clients still send it
		code = http.StatusAccepted
	}
	gr := q.res.GVR.GroupResource()
	if !gone || returnsDeleted[gr] {
		return q.writeEntry(f, code, e)
	}
	obj := e.Object()
	f.as = ""
	q.writeObject(f, code, &metav1.Status{
		Status:  metav1.StatusSuccess,
		Details: &metav1.StatusDetails{Name: obj.GetName(), Group: gr.Group, Kind: gr.Resource, UID: obj.GetUID()},
	}, statusKind)
	return nil
}

func (q *request) deleteCollection() error {
	f, err := q.form(false)
	if err != nil {
		return err
	}
	list, err := q.listOptions()
	if err != nil {
		return err
	}
	opts, err := q.deleteOptions()
	if err != nil {
		return err
	}
	if q.r.ContentLength != 0 && len(opts.DryRun) == 0 {
		// kubectl sends the options in the body and dryRun in the URL as well.
		if o, err := q.options(); err == nil {
			opts.DryRun = o.values["dryRun"]
		}
	}
	entries, err := q.storage.DeleteCollection(q.ctx, q.info.Namespace, opts, list)
	if err != nil {
		return err
	}
	return q.writeList(f, entries, listMeta{})
}

// errNoStorage says that the catalog and the registry differ.
var errNoStorage = errors.New("the resource has no storage")

func (q *request) open() error {
	s, ok := q.h.cfg.Registry.Storage(q.res.GVR)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("%s: %w", q.res.GVR, errNoStorage))
	}
	q.storage = s
	return nil
}
