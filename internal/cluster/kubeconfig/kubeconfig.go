// Package kubeconfig writes proa's cluster into kubeconfig files and takes it
// out again. What else a file holds stays as it is, comments and unknown fields
// included: the YAML's nodes are edited, not its meaning in Go.
package kubeconfig

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// Name is what the cluster and the context are called; user is the entry of the
// administrator.
const (
	Name = "proa"
	user = "proa-admin"
)

// Entry is how an administrator reaches a cluster.
type Entry struct {
	Server        string // https://host:port
	CA, Cert, Key []byte // PEM
}

// New returns a kubeconfig of nothing but e.
func New(e Entry) ([]byte, error) {
	b, _, err := add(nil, e)
	return b, err
}

// Public returns a kubeconfig that says where a cluster is and who signs for it,
// and holds no secret.
func Public(server string, ca []byte) ([]byte, error) {
	doc, root, err := parse(nil)
	if err != nil {
		return nil, err
	}
	set(root, "apiVersion", scalar("v1"))
	set(root, "kind", scalar("Config"))
	item, err := named(root, "clusters", "")
	if err != nil {
		return nil, err
	}
	set(item, "cluster", pairs("certificate-authority-data", base64.StdEncoding.EncodeToString(ca), "server", server))
	return encode(doc)
}

// add returns a kubeconfig with e in it, and whether e is its current context.
func add(old []byte, e Entry) (out []byte, current bool, err error) {
	doc, root, err := parse(old)
	if err != nil {
		return nil, false, err
	}
	b64 := base64.StdEncoding.EncodeToString
	if get(root, "apiVersion") == nil {
		set(root, "apiVersion", scalar("v1"))
	}
	if get(root, "kind") == nil {
		set(root, "kind", scalar("Config"))
	}
	for _, x := range []struct {
		list, name, key string
		value           *yaml.Node
	}{
		{"clusters", Name, "cluster", pairs("certificate-authority-data", b64(e.CA), "server", e.Server)},
		{"users", user, "user", pairs("client-certificate-data", b64(e.Cert), "client-key-data", b64(e.Key))},
	} {
		item, err := named(root, x.list, x.name)
		if err != nil {
			return nil, false, err
		}
		set(item, x.key, x.value)
	}
	item, err := named(root, "contexts", Name)
	if err != nil {
		return nil, false, err
	}
	context := get(item, "context")
	if context == nil || context.Kind != yaml.MappingNode {
		context = &yaml.Node{Kind: yaml.MappingNode}
		set(item, "context", context)
	}
	// A namespace that the user chose for the context stays.
	set(context, "cluster", scalar(Name))
	set(context, "user", scalar(user))
	if now := get(root, "current-context"); now == nil || now.Value == "" {
		set(root, "current-context", scalar(Name))
	}
	current = get(root, "current-context").Value == Name
	out, err = encode(doc)
	return out, current, err
}

// remove returns a kubeconfig without the cluster of the authority ca; changed is
// false when the file has it not, or another cluster under its name.
func remove(old, ca []byte) (out []byte, changed bool, err error) {
	doc, root, err := parse(old)
	if err != nil {
		return nil, false, err
	}
	cluster := find(root, "clusters", Name)
	if cluster == nil {
		return old, false, nil
	}
	data := get(get(cluster, "cluster"), "certificate-authority-data")
	if data == nil || data.Value != base64.StdEncoding.EncodeToString(ca) {
		return old, false, nil
	}
	drop(root, "clusters", Name)
	drop(root, "users", user)
	drop(root, "contexts", Name)
	if now := get(root, "current-context"); now != nil && now.Value == Name {
		set(root, "current-context", scalar(""))
	}
	out, err = encode(doc)
	return out, true, err
}

// hasContext says whether a kubeconfig has a context of proa's.
func hasContext(b []byte) bool {
	_, root, err := parse(b)
	return err == nil && find(root, "contexts", Name) != nil
}

func parse(b []byte) (doc, root *yaml.Node, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	doc = &yaml.Node{}
	switch err := dec.Decode(doc); {
	case errors.Is(err, io.EOF): // empty
		root = &yaml.Node{Kind: yaml.MappingNode}
		return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{root}}, root, nil
	case err != nil:
		return nil, nil, fmt.Errorf("no kubeconfig: %w", err)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("no kubeconfig: more than one YAML document")
	}
	root = doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		*root = yaml.Node{Kind: yaml.MappingNode, HeadComment: root.HeadComment, FootComment: root.FootComment}
	}
	if root.Kind != yaml.MappingNode {
		return nil, nil, errors.New("no kubeconfig: not a mapping")
	}
	return doc, root, nil
}

func encode(doc *yaml.Node) ([]byte, error) {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	enc.CompactSeqIndent()
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("encode the kubeconfig: %w", err)
	}
	return out.Bytes(), enc.Close()
}

func scalar(v string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(v)
	return n
}

func pairs(kv ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i < len(kv); i += 2 {
		set(n, kv[i], scalar(kv[i+1]))
	}
	return n
}

func get(m *yaml.Node, key string) *yaml.Node {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

func set(m *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1] = value
			return
		}
	}
	m.Content = append(m.Content, scalar(key), value)
}

// find returns the entry of a list that has a name.
func find(root *yaml.Node, list, name string) *yaml.Node {
	l := get(root, list)
	if l == nil || l.Kind != yaml.SequenceNode {
		return nil
	}
	for _, item := range l.Content {
		if n := get(item, "name"); n != nil && n.Value == name {
			return item
		}
	}
	return nil
}

// named is find, that adds what it does not find.
func named(root *yaml.Node, list, name string) (*yaml.Node, error) {
	if item := find(root, list, name); item != nil {
		return item, nil
	}
	l := get(root, list)
	switch {
	case l == nil || l.Kind == yaml.ScalarNode && l.Tag == "!!null":
		l = &yaml.Node{Kind: yaml.SequenceNode}
		set(root, list, l)
	case l.Kind != yaml.SequenceNode:
		return nil, fmt.Errorf("no kubeconfig: %s is not a list", list)
	}
	item := &yaml.Node{Kind: yaml.MappingNode}
	l.Style &^= yaml.FlowStyle
	l.Content = append(l.Content, item)
	set(item, "name", scalar(name))
	return item, nil
}

func drop(root *yaml.Node, list, name string) {
	item, l := find(root, list, name), get(root, list)
	if item == nil {
		return
	}
	kept := l.Content[:0:0]
	for _, x := range l.Content {
		if x != item {
			kept = append(kept, x)
		}
	}
	l.Content = kept
}
