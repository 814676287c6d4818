package local_test

import (
	"testing"

	"github.com/proa-dev/proa/internal/client"
	"github.com/proa-dev/proa/internal/client/clienttest"
	"github.com/proa-dev/proa/test/control"
)

func TestContract(t *testing.T) {
	clienttest.Run(t, func(t *testing.T) client.Interface { return control.New(t) })
}
