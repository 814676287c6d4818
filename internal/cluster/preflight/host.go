package preflight

import (
	"fmt"

	"github.com/google/nftables"
)

// packetFilter asks nftables for something that every kernel with it answers.
func packetFilter() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	if _, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4); err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	return nil
}
