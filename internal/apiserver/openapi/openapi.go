// Package openapi describes the API to clients: /openapi/v2 for all of it at
// once, /openapi/v3 by group and version. The models of the built-in types were
// made at development time (command generate) and are embedded compressed; the
// paths follow from what is served. A document is made when somebody asks for it
// and not kept: clients keep it, by its hash.
package openapi

//go:generate go run ./generate -out zz_generated.models.json.zst

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	openapiv3 "github.com/google/gnostic-models/openapiv3"
	"github.com/klauspost/compress/gzip"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
)

// Handler answers /openapi/….
type Handler struct {
	Catalog *discovery.Catalog
	Version string // of the server, e.g. v1.37.2
	Logger  *slog.Logger

	mu         sync.Mutex
	generation uint64
	hashes     map[string]string          // of the documents by path
	of         map[string][]*api.Resource // what the hashes are of
}

const (
	typeJSON    = "application/json"
	typeProtoV2 = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	typeProtoV3 = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
	// The same with a name that is a valid media type: what answers carry, and
	// what some clients ask for.
	typeProtoV2Plain = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	typeProtoV3Plain = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

// ServeHTTP answers a request; unknown paths are 404.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
		return
	}
	path := strings.Trim(r.URL.Path, "/")
	var err error
	switch {
	case path == "openapi/v2":
		err = h.v2(w, r)
	case path == "openapi/v3":
		err = h.index(w, r)
	case strings.HasPrefix(path, "openapi/v3/"):
		err = h.v3(w, r, strings.TrimPrefix(path, "openapi/v3/"))
	default:
		http.NotFound(w, r)
	}
	if err != nil {
		if h.Logger != nil {
			h.Logger.Error("make an OpenAPI document", "path", r.URL.Path, "err", err)
		}
		http.Error(w, "cannot make the OpenAPI document", http.StatusInternalServerError)
	}
}

func hashOf(b []byte) string {
	sum := sha512.Sum512(b)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// allHashes returns the hashes of all documents of v3. Those of groups that have
// changed are made anew: a resource that changes is another one.
func (h *Handler) allHashes() (map[string]string, error) {
	generation := h.Catalog.Generation()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hashes != nil && h.generation == generation {
		return h.hashes, nil
	}
	hashes, of := map[string]string{}, h.byVersion()
	var models map[string]*model
	for path, resources := range of {
		if slices.Equal(resources, h.of[path]) {
			hashes[path] = h.hashes[path]
			continue
		}
		if models == nil {
			var err error
			if models, err = unpack(); err != nil {
				return nil, err
			}
		}
		doc, err := h.document(models, resources, true)
		if err != nil {
			return nil, err
		}
		hashes[path] = hashOf(doc)
	}
	for _, e := range h.Catalog.External() {
		path := "apis/" + e.Group + "/" + e.Version
		if delete(hashes, path); e.OpenAPI != nil && e.OpenAPI.Hash() != "" {
			hashes[path] = e.OpenAPI.Hash()
		}
	}
	h.hashes, h.of, h.generation = hashes, of, generation
	return hashes, nil
}

// external returns who describes the API of a path, nil when this server does.
func (h *Handler) external(path string) discovery.Described {
	for _, e := range h.Catalog.External() {
		if e.OpenAPI != nil && path == "apis/"+e.Group+"/"+e.Version {
			return e.OpenAPI
		}
	}
	return nil
}

func (h *Handler) byVersion() map[string][]*api.Resource {
	out := map[string][]*api.Resource{}
	for _, res := range h.Catalog.Resources() {
		path := root(res.GVR.GroupVersion())
		out[path] = append(out[path], res)
	}
	return out
}

// document returns the OpenAPI document of resources as JSON.
// others are added to it.
func (h *Handler) document(models map[string]*model, resources []*api.Resource, v3 bool, others ...*swagger) ([]byte, error) {
	w := &writer{v3: v3, paths: map[string]any{}, used: map[string]bool{}}
	for _, res := range resources {
		if _, custom := res.New().(*unstructured.Unstructured); custom {
			if err := addCustom(models, res); err != nil {
				return nil, err
			}
		}
		w.resource(res)
	}
	for _, o := range others {
		if err := w.other(models, o); err != nil {
			return nil, err
		}
	}
	paths, err := json.Marshal(w.paths)
	if err != nil {
		return nil, fmt.Errorf("write the paths: %w", err)
	}
	all := closure(models, slices.Collect(maps.Keys(w.used)))
	info, err := json.Marshal(map[string]string{"title": "Kubernetes", "version": h.Version})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if v3 {
		b.WriteString(`{"openapi":"3.0.0","info":`)
	} else {
		b.WriteString(`{"swagger":"2.0","info":`)
	}
	b.Write(info)
	b.WriteString(`,"paths":`)
	b.Write(paths)
	if v3 {
		b.WriteString(`,"components":{"schemas":{`)
	} else {
		b.WriteString(`,"definitions":{`)
	}
	for i, name := range slices.Sorted(maps.Keys(all)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Quote(name))
		b.WriteByte(':')
		if v3 {
			b.Write(all[name].V3)
		} else {
			b.Write(all[name].V2)
		}
	}
	if v3 {
		b.WriteString(`},"securitySchemes":{"BearerToken":{"type":"apiKey","description":"Bearer Token authentication","name":"authorization","in":"header"}}}}`)
	} else {
		b.WriteString(`},"securityDefinitions":{"BearerToken":{"description":"Bearer Token authentication","type":"apiKey","name":"authorization","in":"header"}},"security":[{"BearerToken":[]}]}`)
	}
	return b.Bytes(), nil
}

func (h *Handler) index(w http.ResponseWriter, r *http.Request) error {
	hashes, err := h.allHashes()
	if err != nil {
		return err
	}
	paths := map[string]map[string]string{}
	for path, hash := range hashes {
		paths[path] = map[string]string{"serverRelativeURL": "/openapi/v3/" + path + "?hash=" + url.QueryEscape(hash)}
	}
	b, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		return err
	}
	send(w, r, b, typeJSON, hashOf(b))
	return nil
}

func (h *Handler) v3(w http.ResponseWriter, r *http.Request, path string) error {
	if other := h.external(path); other != nil {
		other.V3(w, r)
		return nil
	}
	resources := h.byVersion()[path]
	if resources == nil {
		http.NotFound(w, r)
		return nil
	}
	hashes, err := h.allHashes()
	if err != nil {
		return err
	}
	hash := hashes[path]
	if asked := r.URL.Query().Get("hash"); asked != "" {
		if asked != hash {
			u := *r.URL
			u.RawQuery = "hash=" + url.QueryEscape(hash)
			http.Redirect(w, r, u.String(), http.StatusMovedPermanently)
			return nil
		}
		// The document of a hash never changes.
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	if unchanged(w, r, hash) {
		return nil
	}
	models, err := unpack()
	if err != nil {
		return err
	}
	b, err := h.document(models, resources, true)
	if err != nil {
		return err
	}
	kind := typeJSON
	if accepted(r, typeProtoV3, typeProtoV3Plain) {
		doc, err := openapiv3.ParseDocument(b)
		if err != nil {
			return fmt.Errorf("turn %s into protobuf: %w", path, err)
		}
		if b, err = proto.Marshal(doc); err != nil {
			return err
		}
		kind = typeProtoV3Plain
	}
	send(w, r, b, kind, hash)
	return nil
}

func (h *Handler) v2(w http.ResponseWriter, r *http.Request) error {
	// What v2 says follows from what all documents of v3 say.
	hashes, err := h.allHashes()
	if err != nil {
		return err
	}
	var all bytes.Buffer
	for _, path := range slices.Sorted(maps.Keys(hashes)) {
		all.WriteString(path + hashes[path])
	}
	hash := hashOf(all.Bytes())
	if unchanged(w, r, hash) {
		return nil
	}
	models, err := unpack()
	if err != nil {
		return err
	}
	b, err := h.document(models, h.Catalog.Resources(), false, h.others(r.Context())...)
	if err != nil {
		return err
	}
	kind := typeJSON
	if accepted(r, typeProtoV2, typeProtoV2Plain) {
		doc, err := openapiv2.ParseDocument(b)
		if err != nil {
			return fmt.Errorf("turn the document into protobuf: %w", err)
		}
		if b, err = proto.Marshal(doc); err != nil {
			return err
		}
		kind = typeProtoV2Plain
	}
	send(w, r, b, kind, hash)
	return nil
}

// accepted reports whether the client named one of the types before JSON.
func accepted(r *http.Request, types ...string) bool {
	for _, line := range r.Header.Values("Accept") {
		for c := range strings.SplitSeq(line, ",") {
			media, _, _ := strings.Cut(c, ";")
			media = strings.TrimSpace(media)
			if slices.Contains(types, media) {
				return true
			}
			if media == typeJSON || media == "*/*" {
				return false
			}
		}
	}
	return false
}

func unchanged(w http.ResponseWriter, r *http.Request, hash string) bool {
	if !strings.Contains(r.Header.Get("If-None-Match"), `"`+hash+`"`) {
		return false
	}
	w.Header().Set("ETag", `"`+hash+`"`)
	w.WriteHeader(http.StatusNotModified)
	return true
}

func send(w http.ResponseWriter, r *http.Request, b []byte, kind, hash string) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("ETag", `"`+hash+`"`)
	h.Set("Vary", "Accept, Accept-Encoding")
	if len(b) > 128<<10 && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		if z, err := gzip.NewWriterLevel(w, gzip.BestSpeed); err == nil && r.Method != http.MethodHead {
			_, _ = z.Write(b)
			_ = z.Close()
		}
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(b)
	}
}
