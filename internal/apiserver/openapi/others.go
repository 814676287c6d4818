package openapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// swagger is what is taken over of another server's OpenAPI v2 document.
type swagger struct {
	Paths       map[string]json.RawMessage `json:"paths"`
	Definitions map[string]json.RawMessage `json:"definitions"`
}

// others returns the documents of the groups that others serve. One that cannot be
// had is left out, as its group is unavailable.
func (h *Handler) others(ctx context.Context) (out []*swagger) {
	for _, e := range h.Catalog.External() {
		if e.OpenAPI == nil || e.OpenAPI.Hash() == "" {
			continue
		}
		b, err := e.OpenAPI.V2(ctx)
		doc := &swagger{}
		if err == nil {
			err = json.Unmarshal(b, doc)
		}
		if err != nil {
			if h.Logger != nil {
				h.Logger.Warn("read the OpenAPI document of another server", "group", e.Group, "version", e.Version, "err", err)
			}
			continue
		}
		root := "/apis/" + e.Group + "/" + e.Version + "/"
		for path := range doc.Paths {
			if !strings.HasPrefix(path+"/", root) {
				delete(doc.Paths, path)
			}
		}
		out = append(out, doc)
	}
	return out
}

var references = regexp.MustCompile(`"#/definitions/([^"]+)"`)

func refsIn(raw []byte) (names []string) {
	for _, m := range references.FindAllSubmatch(raw, -1) {
		names = append(names, strings.NewReplacer("~1", "/", "~0", "~").Replace(string(m[1])))
	}
	return names
}

// other adds another server's paths and the models that they need. A model that
// differs from one of the same name gets another name.
func (w *writer) other(models map[string]*model, doc *swagger) error {
	renamed := map[string]string{}
	for name, raw := range doc.Definitions {
		have := models[name]
		if have == nil || sameJSON(have.V2, raw) {
			continue
		}
		for i := 2; ; i++ {
			next := name + "_v" + strconv.Itoa(i)
			if m := models[next]; m == nil || sameJSON(m.V2, raw) {
				renamed[name] = next
				break
			}
		}
	}
	mend := func(raw json.RawMessage) json.RawMessage {
		if len(renamed) == 0 {
			return raw
		}
		return references.ReplaceAllFunc(raw, func(ref []byte) []byte {
			if next, ok := renamed[refsIn(ref)[0]]; ok {
				return []byte(strconv.Quote(refV2 + next))
			}
			return ref
		})
	}
	for name, raw := range doc.Definitions {
		if next, ok := renamed[name]; ok {
			name = next
		}
		if models[name] == nil {
			raw = mend(raw)
			models[name] = &model{Name: name, Refs: refsIn(raw), V2: raw}
		}
	}
	for path, raw := range doc.Paths {
		if !json.Valid(raw) {
			return fmt.Errorf("path %s is no JSON", path)
		}
		raw = mend(raw)
		w.paths[path] = raw
		for _, name := range refsIn(raw) {
			w.used[name] = true
		}
	}
	return nil
}

func sameJSON(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
