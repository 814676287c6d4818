package endpoint

import (
	"net/http"
	"net/url"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/proa-dev/proa/internal/apiserver/auth"
)

// impersonate makes the request another user's, if its sender may be them.
func (q *request) impersonate() error {
	h := q.r.Header
	name := h.Get(authenticationv1.ImpersonateUserHeader)
	uid := h.Get(authenticationv1.ImpersonateUIDHeader)
	groups := h.Values(authenticationv1.ImpersonateGroupHeader)
	extra := impersonatedExtra(h)
	if name == "" {
		if uid != "" || len(groups) > 0 || len(extra) > 0 {
			return apierrors.NewBadRequest("requested impersonation of groups, a UID or extra information without impersonating a user")
		}
		return nil
	}
	base := auth.Attributes{User: q.user, Verb: "impersonate", APIVersion: "v1", ResourceRequest: true}
	may := func(group, resource, subresource, namespace, name string) error {
		a := base
		a.APIGroup, a.Resource, a.Subresource, a.Namespace, a.Name = group, resource, subresource, namespace, name
		return q.allowed(a)
	}
	ns, account, err := serviceaccount.SplitUsername(name)
	isAccount := err == nil
	if isAccount {
		err = may("", "serviceaccounts", "", ns, account)
	} else {
		err = may("", "users", "", "", name)
	}
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := may("", "groups", "", "", g); err != nil {
			return err
		}
	}
	for key, values := range extra {
		for _, v := range values {
			if err := may("authentication.k8s.io", "userextras", key, "", v); err != nil {
				return err
			}
		}
	}
	if uid != "" {
		if err := may("authentication.k8s.io", "uids", "", "", uid); err != nil {
			return err
		}
	}
	all := append([]string(nil), groups...)
	if isAccount && len(all) == 0 {
		all = serviceaccount.MakeGroupNames(ns)
	}
	all = withAuthenticated(name, all)
	q.user = &user.DefaultInfo{Name: name, UID: uid, Groups: all, Extra: extra}
	for key := range h {
		if strings.HasPrefix(key, "Impersonate-") {
			delete(h, key)
		}
	}
	return nil
}

// withAuthenticated adds the group that everyone is in who said a name.
func withAuthenticated(name string, groups []string) []string {
	want := user.AllAuthenticated
	if name == user.Anonymous {
		want = user.AllUnauthenticated
	}
	for _, g := range groups {
		if g == user.AllAuthenticated || g == user.AllUnauthenticated {
			return groups
		}
	}
	return append(groups, want)
}

func impersonatedExtra(h http.Header) map[string][]string {
	var extra map[string][]string
	for key, values := range h {
		rest, ok := strings.CutPrefix(key, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok || rest == "" {
			continue
		}
		name := strings.ToLower(rest)
		if plain, err := url.PathUnescape(name); err == nil {
			name = plain
		}
		if extra == nil {
			extra = map[string][]string{}
		}
		extra[name] = append(extra[name], values...)
	}
	return extra
}
