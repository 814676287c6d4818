package discovery

import (
	"net"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Handler answers /api, /apis and what is below them down to the lists of resources.
type Handler struct {
	Catalog *Catalog
	// ServerAddress is what /api names as this server's address for in-cluster clients.
	ServerAddress string
}

const (
	typeJSON  = "application/json"
	typeProto = "application/vnd.kubernetes.protobuf"
	typeV2    = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
)

// ServeHTTP reports nothing of its own: unknown paths are 404.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.Serve(w, r) {
		http.NotFound(w, r)
	}
}

// Serve answers a request, or returns false when the path is none of discovery's.
func (h *Handler) Serve(w http.ResponseWriter, r *http.Request) bool {
	d := h.Catalog.state.Load().documents()
	path := strings.Trim(r.URL.Path, "/")
	prefix, rest, _ := strings.Cut(path, "/")
	var doc document
	var ok bool
	switch {
	case path == "api":
		if wantsV2(r) {
			write(w, r, d.apiV2, typeV2)
			return true
		}
		doc, ok = h.versions(d, r), true
	case path == "apis":
		if wantsV2(r) {
			write(w, r, d.apisV2, typeV2)
			return true
		}
		doc, ok = d.apis, true
	case prefix == "api":
		doc, ok = d.versions[rest]
	case prefix == "apis" && !strings.Contains(rest, "/"):
		doc, ok = d.groups[rest]
	case prefix == "apis":
		doc, ok = d.versions[rest]
	}
	if !ok {
		return false
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the server does not allow this method on the requested resource", http.StatusMethodNotAllowed)
		return true
	}
	write(w, r, doc, typeJSON)
	return true
}

func (h *Handler) versions(d *documents, r *http.Request) document {
	address := h.ServerAddress
	if address == "" {
		if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			address = a.String()
		}
	}
	return encode(&metav1.APIVersions{
		TypeMeta:                   metav1.TypeMeta{Kind: "APIVersions"},
		Versions:                   d.coreVersion,
		ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: address}},
	})
}

// wantsV2 reports whether the client prefers the aggregated form over the plain one.
func wantsV2(r *http.Request) bool {
	for _, line := range r.Header.Values("Accept") {
		for c := range strings.SplitSeq(line, ",") {
			media, params, _ := strings.Cut(c, ";")
			if strings.TrimSpace(media) != typeJSON {
				if strings.TrimSpace(media) == "*/*" {
					return false
				}
				continue
			}
			params = strings.ReplaceAll(params, " ", "")
			if params == "" || strings.HasPrefix(params, "q=") {
				return false
			}
			if has(params, "g=apidiscovery.k8s.io") && has(params, "as=APIGroupDiscoveryList") && has(params, "v=v2") {
				return true
			}
		}
	}
	return false
}

func has(params, want string) bool {
	for p := range strings.SplitSeq(params, ";") {
		if p == want {
			return true
		}
	}
	return false
}

func write(w http.ResponseWriter, r *http.Request, d document, contentType string) {
	h := w.Header()
	h.Add("Vary", "Accept")
	h.Set("Content-Type", contentType)
	if contentType == typeV2 {
		h.Set("ETag", d.etag)
		h.Set("Cache-Control", "public")
		if match := r.Header.Get("If-None-Match"); match != "" && (match == "*" || strings.Contains(match, d.etag)) {
			h.Del("Content-Type")
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	body := d.body
	if contentType == typeJSON && wantsProto(r) {
		b, err := d.proto()
		if err != nil {
			http.Error(w, "encode the answer: "+err.Error(), http.StatusInternalServerError)
			return
		}
		body = b
		h.Set("Content-Type", typeProto)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// wantsProto reports whether protobuf comes first in what the client accepts.
func wantsProto(r *http.Request) bool {
	for _, line := range r.Header.Values("Accept") {
		for c := range strings.SplitSeq(line, ",") {
			media, _, _ := strings.Cut(c, ";")
			switch strings.TrimSpace(media) {
			case typeProto:
				return true
			case typeJSON, "*/*":
				return false
			}
		}
	}
	return false
}
