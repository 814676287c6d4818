package endpoint

import (
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// RequestInfo is what the URL and the method of a request say.
type RequestInfo struct {
	Path              string
	Verb              string // of the API for resources, else the method in lower case
	IsResourceRequest bool
	Group             string
	Version           string
	Namespace         string
	Resource          string
	Subresource       string
	Name              string
	// Rest is what follows the subresource (the path to proxy to), with its slash.
	Rest string
	// Selected is the name that a list's field selector asks for: authorization
	// takes it for the name.
	Selected string
}

// GVR is the resource that is asked for.
func (i *RequestInfo) GVR() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: i.Group, Version: i.Version, Resource: i.Resource}
}

// AuthorizedName is the name that authorization looks at.
func (i *RequestInfo) AuthorizedName() string {
	if i.Name == "" {
		return i.Selected
	}
	return i.Name
}

// ParseRequest reads a request's path, method and the options that decide the verb.
func ParseRequest(r *http.Request) RequestInfo {
	info := RequestInfo{Path: r.URL.Path, Verb: strings.ToLower(r.Method)}
	next := segments(r.URL.Path)
	prefix := next.take()
	switch prefix {
	case "api":
	case "apis":
		info.Group = next.take()
		if info.Group == "" {
			return info
		}
	default:
		return info
	}
	info.Version = next.take()
	first := next.take()
	if info.Version == "" || first == "" {
		info.Group, info.Version = "", ""
		return info // discovery
	}
	info.IsResourceRequest = true
	watch := false
	// The watch prefix is deprecated since 1.0 and still answered.
	if first == "watch" && !next.empty() && prefix != "" {
		watch = true
		first = next.take()
	}
	if first == "namespaces" {
		if info.Namespace = next.take(); info.Namespace != "" {
			// What follows is a resource in the namespace, unless it is a subresource of it.
			switch sub := next.peek(); sub {
			case "", "status", "finalize":
				info.Resource, info.Name = first, info.Namespace
			default:
				info.Resource = next.take()
				info.Name = next.take()
			}
		} else {
			info.Resource = first
		}
	} else {
		info.Resource = first
		info.Name = next.take()
	}
	info.Subresource = next.take()
	info.Rest = string(next)
	info.Verb = verbOf(r, &info, watch)
	return info
}

func verbOf(r *http.Request, info *RequestInfo, watch bool) string {
	verb := ""
	switch r.Method {
	case http.MethodPost:
		return "create"
	case http.MethodGet, http.MethodHead:
		verb = "get"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		verb = "delete"
	default:
		return ""
	}
	if info.Name != "" {
		if watch && verb == "get" {
			info.Selected = info.Name
			info.Name = ""
			return "watch"
		}
		return verb
	}
	if verb == "delete" {
		verb = "deletecollection"
	} else {
		verb = "list"
	}
	if watch {
		verb = "watch"
	}
	if r.URL.RawQuery == "" {
		return verb
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return verb // the verb will say what is wrong with it
	}
	if verb == "list" {
		if v, ok := query["watch"]; ok && len(v) > 0 && queryBool(v[0]) {
			verb = "watch"
		}
	}
	if s := query.Get("fieldSelector"); s != "" {
		if sel, err := fields.ParseSelector(s); err == nil {
			if name, ok := sel.RequiresExactMatch("metadata.name"); ok {
				info.Selected = name
			}
		}
	}
	return verb
}

// queryBool reads a boolean option as Kubernetes does: anything but false and 0 is true.
func queryBool(s string) bool {
	return s != "0" && !strings.EqualFold(s, "false")
}

// segments is the part of a path that is still to be read.
type segments string

func (s *segments) take() string {
	rest := strings.TrimLeft(string(*s), "/")
	part, rest, more := strings.Cut(rest, "/")
	if more {
		rest = "/" + rest
	}
	*s = segments(rest)
	return part
}

func (s *segments) peek() string {
	c := *s
	return c.take()
}

func (s *segments) empty() bool { return s.peek() == "" }
