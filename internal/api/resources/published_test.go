package resources_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"github.com/proa-dev/proa/internal/api/resources"
)

// Every kind that is served reads what k8s.io/api publishes of it for such tests, as
// this release writes it and as earlier ones did, in JSON, YAML and protobuf: the
// three say the same, and what is written again reads the same.
func TestPublishedObjectsComeBackTheSame(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatalf("find the module k8s.io/api: %v", err)
	}
	root := filepath.Join(strings.TrimSpace(string(out)), "testdata")
	releases, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	scheme := resources.Scheme()
	served := map[schema.GroupVersionKind]bool{}
	for _, r := range resources.All() {
		served[r.GVK] = true
	}
	meta := jsonserializer.DefaultMetaFactory
	asJSON := jsonserializer.NewSerializerWithOptions(meta, scheme, scheme, jsonserializer.SerializerOptions{Strict: true})
	asYAML := jsonserializer.NewSerializerWithOptions(meta, scheme, scheme, jsonserializer.SerializerOptions{Yaml: true, Strict: true})
	asProto := protobuf.NewSerializer(scheme, scheme)
	read := func(t *testing.T, s runtime.Serializer, data []byte) runtime.Object {
		t.Helper()
		obj, _, err := s.Decode(data, nil, nil)
		if err != nil && !(runtime.IsStrictDecodingError(err) && obj != nil) {
			t.Fatal(err)
		}
		return obj
	}
	seen := map[schema.GroupVersionKind]bool{}
	for _, release := range releases {
		if !release.IsDir() {
			continue
		}
		files, err := filepath.Glob(filepath.Join(root, release.Name(), "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var kind metav1.TypeMeta
			if err := json.Unmarshal(data, &kind); err != nil {
				t.Fatal(err)
			}
			gvk := schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind)
			if !served[gvk] {
				continue
			}
			seen[gvk] = true
			base := strings.TrimSuffix(file, ".json")
			// What a release read of an older one's bytes stands beside, as *.after_roundtrip.*.
			if strings.HasSuffix(base, ".after_roundtrip") {
				continue
			}
			t.Run(release.Name()+"/"+filepath.Base(base), func(t *testing.T) {
				want := read(t, asJSON, data)
				for ext, s := range map[string]runtime.Serializer{".yaml": asYAML, ".pb": asProto} {
					other, err := os.ReadFile(base + ext)
					if err != nil {
						t.Fatal(err)
					}
					if got := read(t, s, other); !same(t, got, want) {
						t.Errorf("%s reads as another object than .json", ext)
					}
				}
				for name, s := range map[string]runtime.Serializer{"JSON": asJSON, "YAML": asYAML, "protobuf": asProto} {
					var b bytes.Buffer
					if err := s.Encode(want, &b); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if got := read(t, s, b.Bytes()); !same(t, got, want) {
						t.Errorf("%s comes back as another object", name)
					}
				}
			})
		}
	}
	for gvk := range served {
		switch gvk.Group {
		case "apiextensions.k8s.io", "apiregistration.k8s.io": // published elsewhere
		default:
			if !seen[gvk] {
				t.Errorf("nothing is published of %s", gvk)
			}
		}
	}
}

// same compares objects. Those that hold JSON of any kind may hold it with other
// spaces, and in another order.
func same(t *testing.T, a, b runtime.Object) bool {
	t.Helper()
	if equality.Semantic.DeepEqual(a, b) {
		return true
	}
	plain := func(o runtime.Object) (out any) {
		data, err := json.Marshal(o)
		if err == nil {
			err = json.Unmarshal(data, &out)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	return reflect.DeepEqual(plain(a), plain(b))
}
