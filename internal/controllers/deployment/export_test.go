package deployment

import (
	"context"

	"k8s.io/apimachinery/pkg/types"
)

// SyncForTest is one pass over an object.
func SyncForTest(x *Controller, namespace, name string) error {
	return x.sync(context.Background(), types.NamespacedName{Namespace: namespace, Name: name})
}
