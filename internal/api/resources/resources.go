// Package resources collects the resources of all API groups, and the scheme
// of their Go types. It has no rules of its own.
package resources

import (
	"github.com/proa-dev/proa/internal/api"
	"github.com/proa-dev/proa/internal/api/admissionregistration"
	"github.com/proa-dev/proa/internal/api/apiextensions"
	"github.com/proa-dev/proa/internal/api/apiregistration"
	"github.com/proa-dev/proa/internal/api/apps"
	"github.com/proa-dev/proa/internal/api/authentication"
	"github.com/proa-dev/proa/internal/api/authorization"
	"github.com/proa-dev/proa/internal/api/autoscaling"
	"github.com/proa-dev/proa/internal/api/batch"
	"github.com/proa-dev/proa/internal/api/certificates"
	"github.com/proa-dev/proa/internal/api/coordination"
	"github.com/proa-dev/proa/internal/api/core"
	"github.com/proa-dev/proa/internal/api/discovery"
	"github.com/proa-dev/proa/internal/api/events"
	"github.com/proa-dev/proa/internal/api/flowcontrol"
	"github.com/proa-dev/proa/internal/api/networking"
	"github.com/proa-dev/proa/internal/api/node"
	"github.com/proa-dev/proa/internal/api/policy"
	"github.com/proa-dev/proa/internal/api/rbac"
	"github.com/proa-dev/proa/internal/api/resource"
	"github.com/proa-dev/proa/internal/api/scheduling"
	"github.com/proa-dev/proa/internal/api/storage"
	"github.com/proa-dev/proa/internal/api/storagemigration"
)

// All returns every resource of the API, in the order in which discovery shows
// the groups. Each call builds new ones.
func All() []*api.Resource {
	var all []*api.Resource
	for _, group := range [][]*api.Resource{
		core.Resources(),
		apiregistration.Resources(),
		apps.Resources(),
		events.Resources(),
		authentication.Resources(),
		authorization.Resources(),
		autoscaling.Resources(),
		batch.Resources(),
		certificates.Resources(),
		networking.Resources(),
		policy.Resources(),
		rbac.Resources(),
		storage.Resources(),
		admissionregistration.Resources(),
		apiextensions.Resources(),
		scheduling.Resources(),
		coordination.Resources(),
		node.Resources(),
		discovery.Resources(),
		flowcontrol.Resources(),
		resource.Resources(),
		storagemigration.Resources(),
	} {
		all = append(all, group...)
	}
	return all
}
