package webhook

import (
	"testing"
)

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true}}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true,"patch":"W10=","patchType":"JSONPatch","warnings":["w"],"auditAnnotations":{"a":"b"}}}`,
		`{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","response":{"allowed":false,"status":{"message":"no","code":403}}}`,
		`{}`, `null`, `[`,
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, body string, mutating bool) {
		for _, version := range []string{"v1", "v1beta1"} {
			a, err := decode(version, []byte(body), "u", mutating)
			if (a == nil) == (err == nil) {
				t.Fatalf("%s: answer %v and error %v", version, a, err)
			}
			if a != nil && !mutating && version == "v1" && len(a.patch) > 0 {
				t.Fatal("a validating webhook patched")
			}
			if a != nil && !a.allowed {
				if err := denied("h", a.result); err == nil || err.Error() == "" {
					t.Fatal("a denial says nothing")
				}
			}
		}
	})
}

func TestAnswersThatAreNone(t *testing.T) {
	for _, x := range []struct {
		name, body string
		mutating   bool
		want       string
	}{
		{"no response", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, false, "received invalid webhook response: webhook response was absent"},
		{"to another request", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"x"}}`, false, `received invalid webhook response: expected response.uid="u", got "x"`},
		{"of another kind", `{"apiVersion":"v1","kind":"Status","response":{"uid":"u"}}`, false, "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=Status"},
		{"a patch of no type", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","patch":"W10="}}`, true, "received invalid webhook response: webhook returned response.patch but not response.patchType"},
		{"a patch that may not be", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","patch":"W10=","patchType":"JSONPatch"}}`, false, "received invalid webhook response: validating webhook may not return response.patch"},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, err := decode("v1", []byte(x.body), "u", x.mutating)
			if err == nil || err.Error() != x.want {
				t.Errorf("got  %v\nwant %s", err, x.want)
			}
		})
	}
}
