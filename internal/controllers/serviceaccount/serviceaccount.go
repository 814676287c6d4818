// Package serviceaccount gives every namespace its default ServiceAccount and the
// ConfigMap with the cluster's root certificate.
package serviceaccount

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/controllers/loop"
)

const (
	account   = "default"
	configMap = "kube-root-ca.crt"
	caKey     = "ca.crt"
	note      = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

// Controller writes ServiceAccounts named default and ConfigMaps named
// kube-root-ca.crt; it reads Namespaces.
type Controller struct {
	client     client.Interface
	ca         string
	loop       *loop.Loop[string]
	namespaces client.Typed[*corev1.Namespace]
	accounts   client.Typed[*corev1.ServiceAccount]
	configs    client.Typed[*corev1.ConfigMap]
}

// New returns the controller; ca is the root certificate in PEM.
func New(c client.Interface, ca []byte, log *slog.Logger) *Controller {
	x := &Controller{client: c, ca: string(ca), namespaces: client.Namespaces.Informer(c, client.Scope{}),
		accounts: client.ServiceAccounts.Informer(c, client.Scope{}), configs: client.ConfigMaps.Informer(c, client.Scope{})}
	x.loop = loop.New("serviceaccount", log, x.sync)
	return x
}

func (x *Controller) Name() string { return "serviceaccount" }

// Run works until ctx ends.
func (x *Controller) Run(ctx context.Context) error {
	mine := func(name string) func(client.Event) {
		return func(e client.Event) {
			if e.Object != nil && e.Object.GetName() == name && e.Type != client.Added {
				x.loop.Add(e.Object.GetNamespace())
			}
		}
	}
	return x.loop.Run(ctx, 1,
		loop.Source{Informer: x.namespaces.Informer, Handle: func(e client.Event) {
			if e.Object != nil && e.Type != client.Deleted {
				x.loop.Add(e.Object.GetName())
			}
		}},
		loop.Source{Informer: x.accounts.Informer, Handle: mine(account)},
		loop.Source{Informer: x.configs.Informer, Handle: mine(configMap)})
}

func (x *Controller) sync(ctx context.Context, namespace string) error {
	ns, ok := x.namespaces.Get("", namespace)
	if !ok || ns.DeletionTimestamp != nil {
		return nil
	}
	if _, ok := x.accounts.Get(namespace, account); !ok {
		_, err := client.ServiceAccounts.Create(ctx, x.client, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}})
		if err != nil && !apierrors.IsAlreadyExists(err) && !leaving(err) {
			return fmt.Errorf("create service account %s/%s: %w", namespace, account, err)
		}
	}
	have, ok := x.configs.Get(namespace, configMap)
	switch {
	case !ok:
		_, err := client.ConfigMaps.Create(ctx, x.client, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: configMap, Annotations: map[string]string{"kubernetes.io/description": note}},
			Data:       map[string]string{caKey: x.ca}})
		if err != nil && !apierrors.IsAlreadyExists(err) && !leaving(err) {
			return fmt.Errorf("create configmap %s/%s: %w", namespace, configMap, err)
		}
	case have.Data[caKey] != x.ca:
		want := have.DeepCopy()
		want.Data = map[string]string{caKey: x.ca}
		if _, err := client.ConfigMaps.Update(ctx, x.client, want); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("update configmap %s/%s: %w", namespace, configMap, err)
		}
	}
	return nil
}

// leaving says that the namespace is on its way out: there is nothing to do then.
func leaving(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || apierrors.IsNotFound(err)
}
