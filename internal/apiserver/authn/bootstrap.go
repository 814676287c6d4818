package authn

import (
	"crypto/subtle"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
)

// Bootstrap tokens are those by which machines join a cluster: Secrets in kube-system
// of their own type, with an end. Who has one is system:bootstrap:ID in the group
// system:bootstrappers, and may do what that group may.
type Bootstrap struct {
	reader Reader
	now    func() time.Time
}

// NewBootstrap returns the tokens that are in reader.
func NewBootstrap(reader Reader, now func() time.Time) *Bootstrap {
	return &Bootstrap{reader: reader, now: now}
}

var (
	bootstrapForm  = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
	bootstrapGroup = regexp.MustCompile(`^system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]$`)
)

// Authenticate says who has a token; ok is false when it is none of these, or not valid.
func (b *Bootstrap) Authenticate(token string) (who user.Info, ok bool) {
	m := bootstrapForm.FindStringSubmatch(token)
	if m == nil {
		return nil, false
	}
	id, secret := m[1], m[2]
	obj, found := b.reader.Get(corev1.SchemeGroupVersion.WithResource("secrets"), metav1.NamespaceSystem, "bootstrap-token-"+id)
	if !found {
		return nil, false
	}
	s, isSecret := obj.(*corev1.Secret)
	if !isSecret || s.Type != "bootstrap.kubernetes.io/token" || s.DeletionTimestamp != nil || string(s.Data["token-id"]) != id ||
		subtle.ConstantTimeCompare(s.Data["token-secret"], []byte(secret)) != 1 || string(s.Data["usage-bootstrap-authentication"]) != "true" {
		return nil, false
	}
	if text := string(s.Data["expiration"]); text != "" {
		if end, err := time.Parse(time.RFC3339, text); err != nil || !b.now().Before(end) {
			return nil, false
		}
	}
	groups := []string{"system:bootstrappers"}
	for g := range strings.SplitSeq(string(s.Data["auth-extra-groups"]), ",") {
		if g = strings.TrimSpace(g); g == "" {
			continue
		}
		if !bootstrapGroup.MatchString(g) {
			return nil, false
		}
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	return &user.DefaultInfo{Name: "system:bootstrap:" + id, Groups: groups}, true
}

// WithBootstrap has the authenticator know bootstrap tokens too.
func (a *Authenticator) WithBootstrap(b *Bootstrap) *Authenticator {
	a.bootstrap = b
	return a
}
