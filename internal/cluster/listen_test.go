package cluster

import (
	"errors"
	"io"
	"net"
	"testing"
)

func TestJoinedListenersAcceptFromAllAndCloseTogether(t *testing.T) {
	var all []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	j := together(all...)
	for _, l := range all {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := j.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if s.LocalAddr().String() != l.Addr().String() {
			t.Errorf("accepted at %s, want %s", s.LocalAddr(), l.Addr())
		}
		_ = s.Close()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v", err)
		}
		_ = c.Close()
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	for _, l := range all {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			_ = c.Close()
			t.Errorf("%s still answers", l.Addr())
		}
	}
}

func TestServerURL(t *testing.T) {
	for listen, want := range map[string]string{"127.0.0.1:6443": "https://127.0.0.1:6443", "0.0.0.0:1": "https://127.0.0.1:1", ":1": "https://127.0.0.1:1",
		"[::]:1": "https://127.0.0.1:1", "192.0.2.1:1": "https://192.0.2.1:1", "[2001:db8::1]:1": "https://[2001:db8::1]:1"} {
		if got := serverURL(listen); got != want {
			t.Errorf("serverURL(%q) = %q, want %q", listen, got, want)
		}
	}
}
