package openapi

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/apiserver/discovery"
)

// writer writes the paths of resources in one version of OpenAPI.
type writer struct {
	v3    bool
	paths map[string]any
	used  map[string]bool // models
}

func (w *writer) ref(name string) map[string]any {
	w.used[name] = true
	if w.v3 {
		return map[string]any{"$ref": refV3 + name}
	}
	return map[string]any{"$ref": refV2 + name}
}

// parameter is an option in the URL.
type parameter struct{ name, typ, description string }

var (
	pretty          = parameter{"pretty", "string", "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget)."}
	dryRun          = parameter{"dryRun", "string", "When present, indicates that modifications should not be persisted. An invalid or unrecognized dryRun directive will result in an error response and no further processing of the request. Valid values are: - All: all dry run stages will be processed"}
	fieldManager    = parameter{"fieldManager", "string", "fieldManager is a name associated with the actor or entity that is making these changes. The value must be less than or 128 characters long, and only contain printable characters. It is required for apply requests (application/apply-patch)."}
	fieldValidation = parameter{"fieldValidation", "string", "fieldValidation instructs the server on how to handle objects in the request containing unknown or duplicate fields. Valid values are Ignore, Warn (the default) and Strict."}
	force           = parameter{"force", "boolean", "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other people. Force flag must be unset for non-apply patch requests."}

	listParameters = []parameter{
		{"allowWatchBookmarks", "boolean", "allowWatchBookmarks requests watch events with type \"BOOKMARK\"."},
		{"continue", "string", "The continue option should be set when retrieving more results from the server, with the value of the previous list's metadata.continue."},
		{"fieldSelector", "string", "A selector to restrict the list of returned objects by their fields. Defaults to everything."},
		{"labelSelector", "string", "A selector to restrict the list of returned objects by their labels. Defaults to everything."},
		{"limit", "integer", "limit is a maximum number of responses to return for a list call. If more items exist, the server will set the continue field on the list metadata."},
		{"resourceVersion", "string", "resourceVersion sets a constraint on what resource versions a request may be served from. Defaults to unset."},
		{"resourceVersionMatch", "string", "resourceVersionMatch determines how resourceVersion is applied to list calls. Defaults to unset."},
		{"sendInitialEvents", "boolean", "sendInitialEvents=true may be set together with watch=true: the watch stream then begins with synthetic events of the collection's current state, and a bookmark that ends them."},
		{"timeoutSeconds", "integer", "Timeout for the list/watch call. This limits the duration of the call, regardless of any activity or inactivity."},
		{"watch", "boolean", "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications. Specify resourceVersion."},
	}
	deleteParameters = []parameter{
		dryRun,
		{"gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted. The value zero indicates delete immediately. If this value is nil, the default grace period for the specified type will be used."},
		{"orphanDependents", "boolean", "Deprecated: please use the PropagationPolicy. Should the dependent objects be orphaned."},
		{"propagationPolicy", "string", "Whether and how garbage collection will be performed: 'Orphan', 'Background' or 'Foreground'."},
	}
	writeParameters = []parameter{dryRun, fieldManager, fieldValidation}
	patchParameters = []parameter{dryRun, fieldManager, fieldValidation, force}
)

func (w *writer) parameter(p parameter, in string) map[string]any {
	out := map[string]any{"name": p.name, "in": in, "description": p.description, "uniqueItems": true}
	if in == "path" {
		out["required"] = true
	}
	if w.v3 {
		delete(out, "uniqueItems")
		out["schema"] = map[string]any{"type": p.typ, "uniqueItems": true}
	} else {
		out["type"] = p.typ
	}
	return out
}

// operation is one method of a path.
type operation struct {
	method, action, id string
	description        string
	tag                string
	gvk                schema.GroupVersionKind
	parameters         []parameter
	body, answer       string // models
	custom             bool   // of a custom resource
	codes              []string
}

var (
	produces      = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	producesWatch = append(slices.Clone(produces), "application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch")
	patchTypes    = []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}

	producesCustom = []string{"application/json", "application/yaml"}
	patchesCustom  = []string{"application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"}
)

var codeText = map[string]string{"200": "OK", "201": "Created", "202": "Accepted", "401": "Unauthorized"}

func (w *writer) add(path string, o operation) {
	item, _ := w.paths[path].(map[string]any)
	if item == nil {
		item = map[string]any{}
		var in []any
		if strings.Contains(path, "{name}") {
			in = append(in, w.parameter(parameter{"name", "string", "name of the " + o.gvk.Kind}, "path"))
		}
		if strings.Contains(path, "{namespace}") {
			in = append(in, w.parameter(parameter{"namespace", "string", "object name and auth scope, such as for teams and projects"}, "path"))
		}
		if strings.HasSuffix(path, "/{path}") {
			in = append(in, w.parameter(parameter{"path", "string", "path to the resource"}, "path"))
		}
		in = append(in, w.parameter(pretty, "query"))
		item["parameters"] = in
		w.paths[path] = item
	}
	out := map[string]any{
		"description": o.description, "operationId": o.id, "tags": []string{o.tag},
	}
	if o.action != "" {
		out["x-kubernetes-action"] = o.action
		out["x-kubernetes-group-version-kind"] = map[string]string{"group": o.gvk.Group, "version": o.gvk.Version, "kind": o.gvk.Kind}
	}
	parameters := make([]any, 0, len(o.parameters)+1)
	for _, p := range o.parameters {
		parameters = append(parameters, w.parameter(p, "query"))
	}
	types := produces
	switch o.action {
	case "list", "watch", "watchlist":
		types = producesWatch
	case "connect":
		types = []string{"*/*"}
	}
	consumes := []string{"*/*"}
	if o.custom && o.action != "connect" {
		types = producesCustom
		consumes = producesCustom
	}
	if o.action == "patch" {
		if consumes = patchTypes; o.custom {
			consumes = patchesCustom
		}
	}
	if o.body != "" {
		required := o.action != "delete" && o.action != "deletecollection"
		if w.v3 {
			content := map[string]any{}
			for _, t := range consumes {
				content[t] = map[string]any{"schema": w.ref(o.body)}
			}
			body := map[string]any{"content": content}
			if required {
				body["required"] = true
			}
			out["requestBody"] = body
		} else {
			body := map[string]any{"name": "body", "in": "body", "schema": w.ref(o.body)}
			if required {
				body["required"] = true
			}
			parameters = append(parameters, body)
		}
	}
	responses := map[string]any{"401": map[string]any{"description": "Unauthorized"}}
	for _, code := range o.codes {
		r := map[string]any{"description": codeText[code]}
		var schema map[string]any
		if o.answer == "" {
			schema = map[string]any{"type": "string"}
		} else {
			schema = w.ref(o.answer)
		}
		if w.v3 {
			content := map[string]any{}
			for _, t := range types {
				content[t] = map[string]any{"schema": schema}
			}
			r["content"] = content
		} else {
			r["schema"] = schema
		}
		responses[code] = r
	}
	out["responses"] = responses
	if len(parameters) > 0 {
		out["parameters"] = parameters
	}
	if !w.v3 {
		out["consumes"], out["produces"], out["schemes"] = consumes, types, []string{"https"}
	}
	item[o.method] = out
}

func title(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[n:]
}

// groupName is a group in the name of an operation: RbacAuthorization for rbac.authorization.k8s.io.
func groupName(group string) string {
	if group == "" {
		return "Core"
	}
	var b strings.Builder
	for part := range strings.SplitSeq(strings.TrimSuffix(group, ".k8s.io"), ".") {
		for word := range strings.SplitSeq(part, "-") {
			if word != "" {
				b.WriteString(title(word))
			}
		}
	}
	return b.String()
}

func root(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.Group + "/" + gv.Version
}

// resource writes the paths of one resource.
func (w *writer) resource(res *api.Resource) {
	object, list := modelOf(res)
	gvk := res.GVK
	scoped := ""
	base := "/" + root(gvk.GroupVersion()) + "/"
	collection := base + res.GVR.Resource
	if res.Namespaced {
		scoped = "Namespaced"
		collection = base + "namespaces/{namespace}/" + res.GVR.Resource
	}
	one := collection + "/{name}"
	names := groupName(gvk.Group) + title(gvk.Version)
	tag := strings.ToLower(strings.TrimSuffix(firstOr(gvk.Group, "core"), ".k8s.io")) + "_" + gvk.Version
	id := func(verb, rest string) string { return verb + names + scoped + gvk.Kind + rest }
	allowed := func(verb string) bool { return len(res.Verbs) == 0 || slices.Contains(res.Verbs, verb) }
	_, custom := res.New().(*unstructured.Unstructured)
	op := func(path string, o operation) {
		o.tag, o.custom = tag, custom
		if o.gvk.Empty() {
			o.gvk = gvk
		}
		w.add(path, o)
	}
	ok, written := []string{"200"}, []string{"200", "201"}
	status := metaPrefix + "Status"
	if allowed("list") {
		op(collection, operation{method: "get", action: "list", id: id("list", ""), description: "list or watch objects of kind " + gvk.Kind, parameters: listParameters, answer: list, codes: ok})
		if res.Namespaced {
			op(base+res.GVR.Resource, operation{method: "get", action: "list", id: "list" + names + gvk.Kind + "ForAllNamespaces", description: "list or watch objects of kind " + gvk.Kind, parameters: listParameters, answer: list, codes: ok})
		}
	}
	if allowed("create") {
		op(collection, operation{method: "post", action: "post", id: id("create", ""), description: "create a " + gvk.Kind, parameters: writeParameters, body: object, answer: object, codes: []string{"200", "201", "202"}})
	}
	if allowed("deletecollection") {
		op(collection, operation{method: "delete", action: "deletecollection", id: "delete" + names + "Collection" + scoped + gvk.Kind, description: "delete collection of " + gvk.Kind, parameters: slices.Concat(deleteParameters, listParameters[1:9]), body: metaPrefix + "DeleteOptions", answer: status, codes: ok})
	}
	if allowed("get") {
		op(one, operation{method: "get", action: "get", id: id("read", ""), description: "read the specified " + gvk.Kind, answer: object, codes: ok})
	}
	if allowed("update") {
		op(one, operation{method: "put", action: "put", id: id("replace", ""), description: "replace the specified " + gvk.Kind, parameters: writeParameters, body: object, answer: object, codes: written})
	}
	if allowed("patch") {
		op(one, operation{method: "patch", action: "patch", id: id("patch", ""), description: "partially update the specified " + gvk.Kind, parameters: patchParameters, body: patchModel, answer: object, codes: written})
	}
	if allowed("delete") {
		op(one, operation{method: "delete", action: "delete", id: id("delete", ""), description: "delete a " + gvk.Kind, parameters: deleteParameters, body: metaPrefix + "DeleteOptions", answer: status, codes: []string{"200", "202"}})
	}
	for _, s := range discovery.SubresourcesOf(res) {
		path := one + "/" + s.Name
		suffix := title(s.Name)
		kind := subresourceModel(s, object)
		for _, verb := range s.Verbs {
			o := operation{gvk: s.Kind}
			switch {
			case kind == "": // a connection
				o.action, o.codes = "connect", ok
				o.method = map[string]string{"create": "post", "get": "get", "update": "put", "patch": "patch", "delete": "delete"}[verb]
				o.id, o.description = id("connect"+title(o.method), suffix), "connect "+strings.ToUpper(o.method)+" requests to "+s.Name+" of "+gvk.Kind
				op(path, o)
				if s.Name == "proxy" {
					o.id += "WithPath"
					op(path+"/{path}", o)
				}
				continue
			case s.Name == "log":
				o.method, o.action, o.id, o.codes = "get", "get", id("read", suffix), ok
				o.parameters = logParameters
				o.description = "read log of the specified " + gvk.Kind
				op(path, o)
				continue
			case verb == "create":
				o.method, o.action, o.id, o.parameters, o.body, o.codes = "post", "post", id("create", suffix), writeParameters, kind, []string{"200", "201", "202"}
			case verb == "get":
				o.method, o.action, o.id, o.codes = "get", "get", id("read", suffix), ok
			case verb == "update":
				o.method, o.action, o.id, o.parameters, o.body, o.codes = "put", "put", id("replace", suffix), writeParameters, kind, written
			case verb == "patch":
				o.method, o.action, o.id, o.parameters, o.body, o.codes = "patch", "patch", id("patch", suffix), patchParameters, patchModel, written
			}
			o.answer = kind
			o.description = verb + " " + s.Name + " of the specified " + gvk.Kind
			op(path, o)
		}
	}
}

var logParameters = []parameter{
	{"container", "string", "The container for which to stream logs. Defaults to only container if there is one container in the pod."},
	{"follow", "boolean", "Follow the log stream of the pod. Defaults to false."},
	{"insecureSkipTLSVerifyBackend", "boolean", "insecureSkipTLSVerifyBackend indicates that the apiserver should not confirm the validity of the serving certificate of the backend it is connecting to."},
	{"limitBytes", "integer", "If set, the number of bytes to read from the server before terminating the log output."},
	{"previous", "boolean", "Return previous terminated container logs. Defaults to false."},
	{"sinceSeconds", "integer", "A relative time in seconds before the current time from which to show logs."},
	{"stream", "string", "Specify which container log stream to return to the client. Acceptable values are \"All\", \"Stdout\" and \"Stderr\"."},
	{"tailLines", "integer", "If set, the number of lines from the end of the logs to show."},
	{"timestamps", "boolean", "If true, add an RFC3339 or RFC3339Nano timestamp at the beginning of every line of log output. Defaults to false."},
}

// subresourceModel is the model of a subresource's body, "" for a connection.
func subresourceModel(s discovery.Subresource, parent string) string {
	switch s.Kind.Kind {
	case "PodExecOptions", "PodAttachOptions", "PodPortForwardOptions", "PodProxyOptions", "ServiceProxyOptions", "NodeProxyOptions":
		return ""
	case "Scale":
		return "io.k8s.api.autoscaling.v1.Scale"
	case "Binding":
		return "io.k8s.api.core.v1.Binding"
	case "Eviction":
		return "io.k8s.api.policy.v1.Eviction"
	case "TokenRequest":
		return "io.k8s.api.authentication.v1.TokenRequest"
	}
	return parent
}

func firstOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
