package endpoint

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/apiserver/cache"
	"github.com/proa-dev/proa/internal/apiserver/rest"
)

// listMeta is the metadata of a list.
type listMeta struct {
	revision, next string
	remaining      *int64
}

func metaOf(l *rest.ListResult) listMeta {
	return listMeta{revision: cache.FormatRevision(l.Revision), next: l.Continue, remaining: l.RemainingItemCount}
}

func (m listMeta) json(b []byte) []byte {
	b = append(b, '{')
	sep := ""
	field := func(name string) {
		b = append(b, sep...)
		b = append(b, '"')
		b = append(b, name...)
		b = append(b, `":`...)
		sep = ","
	}
	if m.revision != "" {
		field("resourceVersion")
		b = strconv.AppendQuote(b, m.revision)
	}
	if m.next != "" {
		field("continue")
		b = strconv.AppendQuote(b, m.next)
	}
	if m.remaining != nil {
		field("remainingItemCount")
		b = strconv.AppendInt(b, *m.remaining, 10)
	}
	return append(b, '}')
}

// proto is metav1.ListMeta: selfLink 1, resourceVersion 2, continue 3, remainingItemCount 4.
func (m listMeta) proto() []byte {
	b := []byte{1<<3 | 2, 0}
	b = appendBytes(b, 2, []byte(m.revision))
	b = appendBytes(b, 3, []byte(m.next))
	if m.remaining != nil {
		b = append(b, 4<<3)
		b = binary.AppendUvarint(b, uint64(*m.remaining))
	}
	return b
}

func appendBytes(b []byte, field byte, value []byte) []byte {
	b = append(b, field<<3|2)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// item is one element of a list, in the form of the answer and without kind.
type item func(e *cache.Entry) ([]byte, error)

// writeList answers with a list. The length is known before the first byte leaves.
func (q *request) writeList(f form, entries []*cache.Entry, m listMeta) error {
	gvk := q.res.GVK
	if gvk.Kind += "List"; q.res.ListKind != "" {
		gvk.Kind = q.res.ListKind
	}
	var of item
	switch {
	case f.as == asTable:
		return q.writeTable(f, http.StatusOK, entries, m)
	case f.as != "":
		gvk = schema.GroupVersionKind{Group: "meta.k8s.io", Version: f.version, Kind: asPartialList}
		of = partialItem(f)
	case f.encoding == encodeProto:
		of = (*cache.Entry).Proto
	default:
		of = (*cache.Entry).JSON
		if q.unstructured() {
			// Custom resources keep kind and apiVersion in lists too.
			kind := q.res.GVK
			of = func(e *cache.Entry) ([]byte, error) {
				j, err := e.JSON()
				if err != nil {
					return nil, err
				}
				return appendJSON(make([]byte, 0, len(j)+64), kind, j), nil
			}
		}
	}
	if f.encoding == encodeProto {
		return q.writeProtoList(f, gvk, entries, m, of)
	}
	return q.writeJSONList(f, gvk, entries, m, of)
}

func (q *request) writeJSONList(f form, gvk schema.GroupVersionKind, entries []*cache.Entry, m listMeta, of item) error {
	head := appendKind(make([]byte, 0, 256), gvk)
	head = append(head, `,"metadata":`...)
	head = m.json(head)
	head = append(head, `,"items":[`...)
	const tail = "]}"
	size := len(head) + len(tail) + max(len(entries)-1, 0)
	items, err := itemsOf(entries, of)
	if err != nil {
		return err
	}
	for _, b := range items {
		size += len(b)
	}
	if f.pretty || f.encoding == encodeYAML { // people's forms are made of the whole
		body := append(make([]byte, 0, size+1), head...)
		for i, b := range items {
			if i > 0 {
				body = append(body, ',')
			}
			body = append(body, b...)
		}
		body = append(body, tail...)
		q.writeEncoded(f, http.StatusOK, &body)
		return nil
	}
	out := q.begin(f.contentType(false), http.StatusOK, size+1)
	c := newChunked(out)
	c.add(head)
	for i, b := range items {
		if i > 0 {
			c.add(comma)
		}
		c.add(b)
	}
	c.add([]byte(tail + "\n"))
	_ = c.close() // the client is gone
	q.finish(out)
	return nil
}

var comma = []byte{','}

// itemsOf encodes all before anything is sent: what fails fails with a Status.
func itemsOf(entries []*cache.Entry, of item) ([][]byte, error) {
	items := make([][]byte, len(entries))
	for i, e := range entries {
		b, err := of(e)
		if err != nil {
			return nil, fmt.Errorf("encode %q: %w", e.Object().GetName(), err)
		}
		items[i] = b
	}
	return items, nil
}

// writeProtoList knows that every list type has its ListMeta as field 1 and its
// items as field 2.
func (q *request) writeProtoList(f form, gvk schema.GroupVersionKind, entries []*cache.Entry, m listMeta, of item) error {
	items, err := itemsOf(entries, of)
	if err != nil {
		return err
	}
	meta := m.proto()
	size := 1 + uvarintLen(len(meta)) + len(meta)
	for _, b := range items {
		size += 1 + uvarintLen(len(b)) + len(b)
	}
	out := q.begin(f.contentType(false), http.StatusOK, envelopeLen(gvk, size))
	c := newChunked(out)
	c.add(appendBytes(appendEnvelope(make([]byte, 0, 256), gvk, size), 1, meta))
	var prefix [1 + binary.MaxVarintLen64]byte
	prefix[0] = 2<<3 | 2
	for _, b := range items {
		n := binary.PutUvarint(prefix[1:], uint64(len(b)))
		c.add(prefix[:1+n])
		c.add(b)
	}
	c.add([]byte(unknownTail))
	_ = c.close() // the client is gone
	q.finish(out)
	return nil
}

// partialItem returns the PartialObjectMetadata of an entry as a list's item:
// in JSON with kind and apiVersion (as Kubernetes does), in protobuf bare.
func partialItem(f form) item {
	return func(e *cache.Entry) ([]byte, error) {
		if f.encoding == encodeProto {
			return partialProto(e)
		}
		return appendPartial(nil, f, e)
	}
}

// appendPartial writes an entry's PartialObjectMetadata as an object of its own.
func appendPartial(b []byte, f form, e *cache.Entry) ([]byte, error) {
	gvk := schema.GroupVersionKind{Group: "meta.k8s.io", Version: f.version, Kind: asPartial}
	if f.encoding == encodeProto {
		p, err := partialProto(e)
		if err != nil {
			return b, err
		}
		return appendProto(b, gvk, p), nil
	}
	j, err := e.JSON()
	if err != nil {
		return b, err
	}
	meta := jsonField(j, "metadata")
	if meta == nil {
		meta = []byte("{}")
	}
	b = appendKind(b, gvk)
	b = append(b, `,"metadata":`...)
	b = append(b, meta...)
	return append(b, '}'), nil
}

// partialProto is the bare message: field 1 of every kind is its ObjectMeta, and
// so it is in PartialObjectMetadata.
func partialProto(e *cache.Entry) ([]byte, error) {
	if _, ok := e.Object().(protoMessage); ok {
		p, err := e.Proto()
		if err != nil {
			return nil, err
		}
		if len(p) > 0 && p[0] == 1<<3|2 {
			if n, w := binary.Uvarint(p[1:]); w > 0 && n <= uint64(len(p)-1-w) {
				return p[:1+w+int(n)], nil
			}
		}
		return nil, fmt.Errorf("%T does not begin with its metadata", e.Object())
	}
	meta, err := objectMeta(e)
	if err != nil {
		return nil, err
	}
	raw, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	return appendBytes(nil, 1, raw), nil
}

// jsonField returns the value of a field of a JSON object that was made by a
// encoder (no white space between tokens); nil when there is none.
func jsonField(b []byte, name string) []byte {
	i := 1
	for i < len(b) && b[i] == '"' {
		end := stringEnd(b, i)
		if end < 0 || end >= len(b) || b[end] != ':' {
			return nil
		}
		from := end + 1
		to := valueEnd(b, from)
		if to < 0 {
			return nil
		}
		if string(b[i+1:end-1]) == name {
			return b[from:to]
		}
		i = to
		if i < len(b) && b[i] == ',' {
			i++
		}
	}
	return nil
}

// stringEnd returns the index behind the string that begins at i.
func stringEnd(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

func valueEnd(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			if i = stringEnd(b, i); i < 0 {
				return -1
			}
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return -1
}

// cellsJSON writes the cells of a table's row.
func cellsJSON(b []byte, cells []any) ([]byte, error) {
	b = append(b, '[')
	for i, c := range cells {
		if i > 0 {
			b = append(b, ',')
		}
		j, err := json.Marshal(c)
		if err != nil {
			return b, err
		}
		b = append(b, j...)
	}
	return append(b, ']'), nil
}
