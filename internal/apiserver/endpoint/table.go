package endpoint

import (
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/cache"
)

type tableMeta = listMeta

// defaultColumns are those of resources that say nothing of their own.
var defaultColumns = []metav1.TableColumnDefinition{
	{Name: "Name", Type: "string", Format: "name", Description: "Name must be unique within a namespace."},
	{Name: "Age", Type: "string", Description: "CreationTimestamp is the server time when this object was created."},
}

func columnsOf(res *api.Resource) []metav1.TableColumnDefinition {
	if res.Row == nil || res.Columns == nil {
		return defaultColumns
	}
	return res.Columns
}

func rowOf(res *api.Resource, obj api.Object) []any {
	if res.Row == nil || res.Columns == nil {
		age := "<unknown>"
		if t := obj.GetCreationTimestamp(); !t.IsZero() {
			age = duration.HumanDuration(time.Since(t.Time))
		}
		return []any{obj.GetName(), age}
	}
	return res.Row(obj)
}

// include reads how much of each object a table carries.
func (q *request) include() (metav1.IncludeObjectPolicy, error) {
	values, err := q.values()
	if err != nil {
		return "", err
	}
	switch p := metav1.IncludeObjectPolicy(values.Get("includeObject")); p {
	case "":
		return metav1.IncludeMetadata, nil
	case metav1.IncludeMetadata, metav1.IncludeNone, metav1.IncludeObject:
		return p, nil
	default:
		return "", apierrors.NewBadRequest(fmt.Sprintf("includeObject: Invalid value: %q: must be 'Metadata', 'Object', 'None', or empty", string(p)))
	}
}

// appendTable writes a Table. Without columns it is a later event of a watch.
func (q *request) appendTable(b []byte, f form, entries []*cache.Entry, m tableMeta, include metav1.IncludeObjectPolicy, columns bool) ([]byte, error) {
	b = appendKind(b, schema.GroupVersionKind{Group: "meta.k8s.io", Version: f.version, Kind: asTable})
	b = append(b, `,"metadata":`...)
	b = m.json(b)
	b = append(b, `,"columnDefinitions":`...)
	if columns {
		j, err := json.Marshal(columnsOf(q.res))
		if err != nil {
			return b, err
		}
		b = append(b, j...)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"rows":[`...)
	var err error
	for i, e := range entries {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"cells":`...)
		if b, err = cellsJSON(b, rowOf(q.res, e.Object())); err != nil {
			return b, fmt.Errorf("print %q: %w", e.Object().GetName(), err)
		}
		b = append(b, `,"object":`...)
		switch include {
		case metav1.IncludeNone:
			b = append(b, "null"...)
		case metav1.IncludeObject:
			b, err = appendEntry(b, form{}, q.res.GVK, e)
		default:
			b, err = appendPartial(b, form{version: f.version}, e)
		}
		if err != nil {
			return b, err
		}
		b = append(b, '}')
	}
	return append(b, `]}`...), nil
}

func (q *request) writeTable(f form, code int, entries []*cache.Entry, m tableMeta) error {
	include, err := q.include()
	if err != nil {
		return err
	}
	b, err := q.appendTable(make([]byte, 0, 1024+512*len(entries)), f, entries, m, include, true)
	if err != nil {
		return err
	}
	q.writeEncoded(f, code, &b)
	return nil
}

func objectMeta(e *cache.Entry) (*metav1.ObjectMeta, error) {
	m, err := meta.Accessor(e.Object())
	if err != nil {
		return nil, err
	}
	return &meta.AsPartialObjectMetadata(m).ObjectMeta, nil
}
