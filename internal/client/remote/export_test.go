package remote

import "time"

// LookAtOnce makes the next request look at the credential files.
func LookAtOnce(c *Client) {
	c.link.mu.Lock()
	c.link.looked = time.Time{}
	c.link.mu.Unlock()
}
