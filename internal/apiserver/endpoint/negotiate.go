package endpoint

import (
	"mime"
	"net/http"
	"sort"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// encoding is how an answer is written.
type encoding uint8

const (
	encodeJSON encoding = iota
	encodeYAML
	encodeProto
)

const (
	typeJSON  = "application/json"
	typeYAML  = "application/yaml"
	typeProto = "application/vnd.kubernetes.protobuf"

	asTable       = "Table"
	asPartial     = "PartialObjectMetadata"
	asPartialList = "PartialObjectMetadataList"
)

// form is what the client gets: an encoding, and as what.
type form struct {
	encoding encoding
	as       string // "" for the resource's own kind
	version  string // of meta.k8s.io
	pretty   bool
}

var form0 = form{}

func (f form) contentType(stream bool) string {
	switch f.encoding {
	case encodeYAML:
		return typeYAML
	case encodeProto:
		if stream {
			return typeProto + ";stream=watch"
		}
		return typeProto
	}
	return typeJSON
}

// formOptions are what an answer can be.
type formOptions struct {
	noProto bool // the type has no protobuf
	views   bool // Table and PartialObjectMetadata can be asked for
	stream  bool
}

func (o formOptions) accepted() []string {
	switch {
	case o.stream && o.noProto:
		return []string{typeJSON}
	case o.stream:
		return []string{typeJSON, typeProto}
	case o.noProto:
		return []string{typeJSON, typeYAML}
	}
	return []string{typeJSON, typeYAML, typeProto}
}

type clause struct {
	main, sub string
	params    map[string]string
	q         float64
}

// negotiate reads the Accept header.
func (q *request) negotiate(o formOptions) (form, error) {
	f, err := negotiate(q.r.Header["Accept"], o)
	if err != nil {
		return f, err
	}
	if f.encoding == encodeJSON {
		f.pretty = q.pretty()
	}
	return f, nil
}

func (q *request) pretty() bool {
	if strings.Contains(q.r.URL.RawQuery, "pretty") {
		if values, err := q.values(); err == nil && values.Has("pretty") {
			return queryBool(values.Get("pretty"))
		}
	}
	// People read what these show.
	agent := q.r.Header.Get("User-Agent")
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

func negotiate(accept []string, o formOptions) (form, error) {
	if len(accept) == 0 || len(accept) == 1 && accept[0] == "" {
		return form0, nil
	}
	if len(accept) == 1 {
		switch accept[0] {
		case typeJSON, "*/*", "application/json, */*":
			return form0, nil
		case typeProto, typeProto + ",application/json":
			if !o.noProto {
				return form{encoding: encodeProto}, nil
			}
		}
	}
	for _, c := range clauses(strings.Join(accept, ",")) {
		if f, ok := c.fits(o); ok {
			return f, nil
		}
	}
	return form0, &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: "only the following media types are accepted: " + strings.Join(o.accepted(), ", "),
	}}
}

func (c *clause) fits(o formOptions) (form, bool) {
	var f form
	switch {
	case c.main == "*" && c.sub == "*", c.main == "application" && (c.sub == "*" || c.sub == "json"):
	case c.main == "application" && c.sub == "yaml" && !o.stream:
		f.encoding = encodeYAML
	case c.main == "application" && c.sub == "vnd.kubernetes.protobuf":
		f.encoding = encodeProto
	default:
		return f, false
	}
	if s, ok := c.params["stream"]; ok && s != "watch" {
		return f, false
	}
	if as := c.params["as"]; as != "" {
		version := c.params["v"]
		if !o.views || c.params["g"] != "meta.k8s.io" || version != "v1" && version != "v1beta1" {
			return f, false
		}
		switch as {
		case asTable:
			if f.encoding == encodeProto { // Table has no protobuf form
				return f, false
			}
		case asPartial, asPartialList:
		default:
			return f, false
		}
		f.as, f.version = as, version
		return f, true // metadata has protobuf, whatever the type has
	}
	if f.encoding == encodeProto && o.noProto {
		return f, false
	}
	return f, true
}

// maxClauses bounds the work that an Accept header can cause.
const maxClauses = 32

// clauses parses an Accept header, best first.
func clauses(accept string) []clause {
	var list []clause
	for part := range strings.SplitSeq(accept, ",") {
		if len(list) == maxClauses {
			break
		}
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		c := clause{q: 1}
		media := part
		if strings.Contains(part, ";") {
			var rest string
			media, rest, _ = strings.Cut(part, ";")
			for p := range strings.SplitSeq(rest, ";") {
				key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
				key = strings.ToLower(strings.TrimSpace(key))
				value = strings.Trim(strings.TrimSpace(value), `"`)
				if key == "q" {
					if n, err := strconv.ParseFloat(value, 64); err == nil && n >= 0 && n <= 1 {
						c.q = n
					}
					continue
				}
				if c.params == nil {
					c.params = map[string]string{}
				}
				c.params[key] = value
			}
		}
		var ok bool
		c.main, c.sub, ok = strings.Cut(strings.ToLower(strings.TrimSpace(media)), "/")
		if !ok {
			if c.main != "*" {
				continue
			}
			c.sub = "*"
		}
		if c.q > 0 {
			list = append(list, c)
		}
	}
	sort.SliceStable(list, func(i, j int) bool {
		if list[i].q != list[j].q {
			return list[i].q > list[j].q
		}
		return stars(&list[i]) < stars(&list[j])
	})
	return list
}

func stars(c *clause) int {
	switch {
	case c.main == "*":
		return 2
	case c.sub == "*":
		return 1
	}
	return 0
}

// bodyEncoding reads the Content-Type of a body (JSON when it says nothing).
func bodyEncoding(r *http.Request, noProto bool) (encoding, error) {
	switch t := r.Header.Get("Content-Type"); t {
	case "", typeJSON:
		return encodeJSON, nil
	case typeProto:
		if !noProto {
			return encodeProto, nil
		}
	case typeYAML:
		return encodeYAML, nil
	default:
		media, _, err := mime.ParseMediaType(t)
		if err != nil {
			break
		}
		switch media {
		case typeJSON, "*/*":
			return encodeJSON, nil
		case typeYAML:
			return encodeYAML, nil
		case typeProto:
			if !noProto {
				return encodeProto, nil
			}
		}
	}
	return 0, unsupportedMediaType(formOptions{noProto: noProto}.accepted())
}

func unsupportedMediaType(accepted []string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: "the body of the request was in an unknown format - accepted media types include: " + strings.Join(accepted, ", "),
	}}
}
