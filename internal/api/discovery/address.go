package discovery

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// specialAddress refuses addresses that no pod on another machine can have:
// traffic to them would end at the node itself or at everyone.
func specialAddress(address string, path *field.Path) (errs field.ErrorList) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return nil // reported where the form is checked
	}
	refuse := func(why string) { errs = append(errs, field.Invalid(path, address, why)) }
	if ip.IsUnspecified() {
		refuse("may not be unspecified (" + address + ")")
	}
	if ip.IsLoopback() {
		refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)")
	}
	if ip.IsLinkLocalUnicast() {
		refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	}
	if ip.IsLinkLocalMulticast() {
		refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
	return errs
}
