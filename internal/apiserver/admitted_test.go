package apiserver_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/proa-dev/proa/internal/api/resources"
	"github.com/proa-dev/proa/internal/apiserver"
	"github.com/proa-dev/proa/internal/apiserver/admission"
	"github.com/proa-dev/proa/internal/apiserver/rest"
	"github.com/proa-dev/proa/internal/cluster/local"
	"github.com/proa-dev/proa/internal/store/memory"
)

// admitted is a server with all of admission, and the namespace "default".
func admitted(t testing.TB, change ...func(*apiserver.Config)) (*server, *kubernetes.Clientset) {
	t.Helper()
	var registry *rest.Registry
	state := local.State{Registry: func() *rest.Registry { return registry }}
	chain := admission.New(admission.Config{Reader: state, Addresses: admission.NewAddresses(state, netip.MustParsePrefix("10.96.0.0/16"), 30000, 32767, time.Now), Authorizer: masters{}})
	var err error
	store := memory.New()
	registry, err = rest.New(rest.Config{Store: store, Resources: resources.All(), Scheme: resources.Scheme(), Admission: chain})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := registry.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); registry.Close(); _ = store.Close() })
	s := start(t, append([]func(*apiserver.Config){func(c *apiserver.Config) { c.Registry, c.Admission = registry, chain }}, change...)...)
	c := s.clientset(t)
	if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{"team": "a"}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return s, c
}

// hookServer is an HTTPS server that answers AdmissionReviews with answer and keeps what it was asked.
type hookServer struct {
	url string
	ca  []byte

	mu    sync.Mutex
	asked []*admissionv1.AdmissionRequest
	raw   []string
}

func serveHook(t testing.TB, answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) *hookServer {
	t.Helper()
	h := &hookServer{}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil || review.Request == nil {
			http.Error(w, "no review", http.StatusBadRequest)
			return
		}
		h.mu.Lock()
		h.asked = append(h.asked, review.Request)
		h.raw = append(h.raw, string(body))
		h.mu.Unlock()
		resp := answer(review.Request)
		if resp == nil {
			http.Error(w, "broken on purpose", http.StatusInternalServerError)
			return
		}
		resp.UID = review.Request.UID
		_ = json.NewEncoder(w).Encode(&admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp})
	}))
	t.Cleanup(s.Close)
	h.url = s.URL + "/review"
	h.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	return h
}

func (h *hookServer) requests() []*admissionv1.AdmissionRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked
}

func (h *hookServer) client() admissionregistrationv1.WebhookClientConfig {
	return admissionregistrationv1.WebhookClientConfig{URL: &h.url, CABundle: h.ca}
}

func allow(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

func deny(message string) func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: message}}
	}
}

func patch(p string) func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(p), PatchType: ptr.To(admissionv1.PatchTypeJSONPatch)}
	}
}

func rule(resource string, ops ...admissionregistrationv1.OperationType) []admissionregistrationv1.RuleWithOperations {
	group, version, resource := cut3(resource)
	return []admissionregistrationv1.RuleWithOperations{{Operations: ops, Rule: admissionregistrationv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}}}}
}

// cut3 splits group/version:resource.
func cut3(s string) (group, version, resource string) {
	gv, resource, _ := strings.Cut(s, ":")
	group, version, _ = strings.Cut(gv, "/")
	return group, version, resource
}

func validating(t testing.TB, c *kubernetes.Clientset, name string, hooks ...admissionregistrationv1.ValidatingWebhook) {
	t.Helper()
	for i := range hooks {
		hooks[i].AdmissionReviewVersions = []string{"v1"}
		if hooks[i].SideEffects == nil {
			hooks[i].SideEffects = ptr.To(admissionregistrationv1.SideEffectClassNone)
		}
		if hooks[i].Name == "" {
			hooks[i].Name = name + ".example.com"
		}
	}
	if _, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func mutating(t testing.TB, c *kubernetes.Clientset, name string, hooks ...admissionregistrationv1.MutatingWebhook) {
	t.Helper()
	for i := range hooks {
		hooks[i].AdmissionReviewVersions = []string{"v1"}
		if hooks[i].SideEffects == nil {
			hooks[i].SideEffects = ptr.To(admissionregistrationv1.SideEffectClassNone)
		}
		if hooks[i].Name == "" {
			hooks[i].Name = name + ".example.com"
		}
	}
	if _, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
