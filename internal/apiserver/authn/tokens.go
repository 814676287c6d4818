package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/api"
)

// Reader looks an object up in the newest known state.
type Reader interface {
	Get(gvr schema.GroupVersionResource, namespace, name string) (api.Object, bool)
}

var (
	podsGVR            = corev1.SchemeGroupVersion.WithResource("pods")
	nodesGVR           = corev1.SchemeGroupVersion.WithResource("nodes")
	secretsGVR         = corev1.SchemeGroupVersion.WithResource("secrets")
	serviceAccountsGVR = corev1.SchemeGroupVersion.WithResource("serviceaccounts")
)

// Bounds of a requested token life, as the TokenRequest API has them.
const (
	minTokenSeconds = 10 * 60
	maxTokenSeconds = 1 << 32
	// A token that kubelet mounts for an hour lives a year, so that clients that
	// never read the file again go on working; warnafter keeps the hour (KEP-1205).
	mountedTokenSeconds  = 60*60 + 7
	extendedTokenSeconds = 365 * 24 * 60 * 60
)

// Tokens issues and checks service account tokens (JWT, ES256, bound to objects:
// KEP-1205).
type Tokens struct {
	issuer    string
	audiences []string
	key       *ecdsa.PrivateKey
	keyID     string
	signer    jose.Signer
	reader    Reader
	now       func() time.Time
}

// NewTokens returns an issuer. audiences are those of the API server itself; the
// first is what a request without audiences gets.
func NewTokens(issuer string, audiences []string, key *ecdsa.PrivateKey, reader Reader, now func() time.Time) (*Tokens, error) {
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode the service account key: %w", err)
	}
	sum := sha256.Sum256(public)
	id := base64.RawURLEncoding.EncodeToString(sum[:])
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		return nil, fmt.Errorf("make the service account token signer: %w", err)
	}
	return &Tokens{issuer: issuer, audiences: audiences, key: key, keyID: id, signer: signer, reader: reader, now: now}, nil
}

type privateClaims struct {
	Kubernetes kubernetesClaims `json:"kubernetes.io"`
}

type kubernetesClaims struct {
	Namespace      string           `json:"namespace"`
	ServiceAccount ref              `json:"serviceaccount"`
	Pod            *ref             `json:"pod,omitempty"`
	Secret         *ref             `json:"secret,omitempty"`
	Node           *ref             `json:"node,omitempty"`
	WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
}

type ref struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Issue answers a TokenRequest for a service account.
func (t *Tokens) Issue(_ context.Context, namespace, name string, req *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	obj, ok := t.reader.Get(serviceAccountsGVR, namespace, name)
	if !ok {
		return nil, apierrors.NewNotFound(serviceAccountsGVR.GroupResource(), name)
	}
	spec := field.NewPath("spec")
	out := req.DeepCopy()
	out.Namespace, out.Name = namespace, name
	out.CreationTimestamp = metav1.NewTime(t.now())
	if len(out.Spec.Audiences) == 0 {
		out.Spec.Audiences = slices.Clone(t.audiences)
	}
	seconds := int64(3600)
	if out.Spec.ExpirationSeconds != nil {
		seconds = *out.Spec.ExpirationSeconds
	}
	out.Spec.ExpirationSeconds = &seconds
	var errs field.ErrorList
	if seconds < minTokenSeconds {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), seconds, "may not specify a duration less than 10 minutes"))
	}
	if seconds > maxTokenSeconds {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), name, errs)
	}

	claims := kubernetesClaims{Namespace: namespace, ServiceAccount: ref{Name: name, UID: string(obj.GetUID())}}
	if err := t.bind(&claims, namespace, name, out.Spec.BoundObjectRef); err != nil {
		return nil, err
	}
	now := t.now()
	life := seconds
	if seconds == mountedTokenSeconds && claims.Pod != nil && slices.Equal(out.Spec.Audiences, t.audiences) {
		claims.WarnAfter = jwt.NewNumericDate(now.Add(time.Duration(seconds) * time.Second))
		life = extendedTokenSeconds
	}
	expires := now.Add(time.Duration(life) * time.Second)
	token, err := jwt.Signed(t.signer).Claims(jwt.Claims{
		Issuer:    t.issuer,
		Subject:   "system:serviceaccount:" + namespace + ":" + name,
		Audience:  out.Spec.Audiences,
		IssuedAt:  jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now),
		Expiry:    jwt.NewNumericDate(expires),
		ID:        string(uuid.NewUUID()),
	}).Claims(privateClaims{claims}).Serialize()
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("sign token of service account %s/%s: %w", namespace, name, err))
	}
	out.Status.Token = token
	out.Status.ExpirationTimestamp = metav1.NewTime(now.Add(time.Duration(seconds) * time.Second))
	if claims.WarnAfter == nil {
		out.Status.ExpirationTimestamp = metav1.NewTime(expires)
	}
	return out, nil
}

// bind ties the token to the object of the request.
func (t *Tokens) bind(claims *kubernetesClaims, namespace, account string, to *authenticationv1.BoundObjectReference) error {
	if to == nil {
		return nil
	}
	var gvr schema.GroupVersionResource
	var slot **ref
	ns := namespace
	switch gvk := schema.FromAPIVersionAndKind(to.APIVersion, to.Kind); gvk {
	case corev1.SchemeGroupVersion.WithKind("Pod"):
		gvr, slot = podsGVR, &claims.Pod
	case corev1.SchemeGroupVersion.WithKind("Secret"):
		gvr, slot = secretsGVR, &claims.Secret
	case corev1.SchemeGroupVersion.WithKind("Node"):
		gvr, slot, ns = nodesGVR, &claims.Node, ""
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to %s", account, gvk.String()))
	}
	obj, ok := t.reader.Get(gvr, ns, to.Name)
	if !ok {
		return apierrors.NewNotFound(gvr.GroupResource(), to.Name)
	}
	if to.UID != "" && to.UID != obj.GetUID() {
		return apierrors.NewConflict(gvr.GroupResource(), to.Name,
			fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", to.UID))
	}
	if pod, isPod := obj.(*corev1.Pod); isPod {
		if pod.Spec.ServiceAccountName != account {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", account))
		}
		if pod.Spec.NodeName != "" {
			if node, ok := t.reader.Get(nodesGVR, "", pod.Spec.NodeName); ok {
				claims.Node = &ref{Name: node.GetName(), UID: string(node.GetUID())}
			}
		}
	}
	*slot = &ref{Name: obj.GetName(), UID: string(obj.GetUID())}
	return nil
}

// Authenticate checks a token for one of the audiences (nil: the API server's own)
// and returns who it is and which of the audiences match. ok is false when the
// token is not one of this issuer.
func (t *Tokens) Authenticate(token string, audiences []string) (who user.Info, matched []string, ok bool, err error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, nil, false, nil
	}
	var std jwt.Claims
	var own privateClaims
	if err := parsed.UnsafeClaimsWithoutVerification(&std); err != nil || std.Issuer != t.issuer {
		return nil, nil, false, nil
	}
	if err := parsed.Claims(&t.key.PublicKey, &std, &own); err != nil {
		return nil, nil, false, fmt.Errorf("service account token: %w", err)
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Time: t.now()}, time.Minute); err != nil {
		return nil, nil, false, fmt.Errorf("service account token has expired or is not valid yet: %w", err)
	}
	if len(audiences) == 0 {
		audiences = t.audiences
	}
	for _, a := range audiences {
		if slices.Contains(std.Audience, a) {
			matched = append(matched, a)
		}
	}
	if len(matched) == 0 {
		return nil, nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(std.Audience), audiences)
	}
	k := own.Kubernetes
	if std.Subject != "system:serviceaccount:"+k.Namespace+":"+k.ServiceAccount.Name {
		return nil, nil, false, errors.New("service account token: subject and claims differ")
	}
	if err := t.alive(serviceAccountsGVR, k.Namespace, &k.ServiceAccount); err != nil {
		return nil, nil, false, err
	}
	extra := map[string][]string{"authentication.kubernetes.io/credential-id": {"JTI=" + std.ID}}
	for _, bound := range []struct {
		gvr schema.GroupVersionResource
		ns  string
		ref *ref
		key string
	}{{podsGVR, k.Namespace, k.Pod, "pod"}, {secretsGVR, k.Namespace, k.Secret, ""}, {nodesGVR, "", k.Node, "node"}} {
		if bound.ref == nil {
			continue
		}
		// The node of a pod-bound token is only told, not checked: the pod is the bond.
		if bound.key != "node" || k.Pod == nil {
			if err := t.alive(bound.gvr, bound.ns, bound.ref); err != nil {
				return nil, nil, false, err
			}
		}
		if bound.key != "" {
			extra["authentication.kubernetes.io/"+bound.key+"-name"] = []string{bound.ref.Name}
			extra["authentication.kubernetes.io/"+bound.key+"-uid"] = []string{bound.ref.UID}
		}
	}
	return &user.DefaultInfo{
		Name:   std.Subject,
		UID:    k.ServiceAccount.UID,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + k.Namespace},
		Extra:  extra,
	}, matched, true, nil
}

// alive checks that the object a token is bound to is still the same one. An
// object in deletion keeps its tokens for a minute, so that it can shut down.
func (t *Tokens) alive(gvr schema.GroupVersionResource, namespace string, r *ref) error {
	obj, ok := t.reader.Get(gvr, namespace, r.Name)
	if !ok || string(obj.GetUID()) != r.UID {
		return fmt.Errorf("service account token has been invalidated: %s %q is gone", strings.TrimSuffix(gvr.Resource, "s"), r.Name)
	}
	if d := obj.GetDeletionTimestamp(); d != nil && t.now().After(d.Add(time.Minute)) {
		return fmt.Errorf("service account token has been invalidated: %s %q is deleted", strings.TrimSuffix(gvr.Resource, "s"), r.Name)
	}
	return nil
}

// JWKS returns the public key set that verifies the tokens (RFC 7517).
func (t *Tokens) JWKS() jose.JSONWebKeySet {
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &t.key.PublicKey, KeyID: t.keyID, Algorithm: string(jose.ES256), Use: "sig"}}}
}

// Issuer returns the iss claim.
func (t *Tokens) Issuer() string { return t.issuer }

// Audiences returns the API server's own audiences.
func (t *Tokens) Audiences() []string { return t.audiences }

func decodeToken(enc string) (string, bool) {
	b, err := base64.RawURLEncoding.DecodeString(enc)
	return string(b), err == nil && len(b) > 0
}
