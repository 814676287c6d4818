package stream

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// tunnelProtocol is SPDY inside a WebSocket (KEP-4006).
const tunnelProtocol = "SPDY/3.1+" + portforward.ProtocolV1Name

// tunnel upgrades to a WebSocket and returns the request that is made through it: a
// plain one for SPDY, whose connection is the WebSocket.
func tunnel(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, func(), error) {
	up := websocket.Upgrader{Subprotocols: []string{tunnelProtocol}, ReadBufferSize: frame, WriteBufferSize: frame,
		CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	inner := r.Clone(r.Context())
	inner.Method = http.MethodPost
	inner.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, http.CanonicalHeaderKey("X-Stream-Protocol-Version"): {portforward.ProtocolV1Name}}
	c := &wsConn{Conn: conn}
	return &inside{header: http.Header{}, conn: c}, inner, func() { c.Close() }, nil
}

// inside is the answer to the request in the tunnel: its client does not see it, it
// takes the agreement for granted.
type inside struct {
	header http.Header
	conn   net.Conn
}

func (i *inside) Header() http.Header         { return i.header }
func (i *inside) Write(b []byte) (int, error) { return len(b), nil }
func (i *inside) WriteHeader(int)             {}
func (i *inside) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return i.conn, bufio.NewReadWriter(bufio.NewReader(i.conn), bufio.NewWriter(i.conn)), nil
}

// wsConn is the bytes of a WebSocket's binary messages.
type wsConn struct {
	*websocket.Conn
	rest io.Reader  // of the message that is being read
	mu   sync.Mutex // one message is written at a time
	once sync.Once
}

func (c *wsConn) Read(b []byte) (int, error) {
	for {
		if c.rest == nil {
			kind, r, err := c.NextReader()
			if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				return 0, io.EOF
			}
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				continue
			}
			c.rest = r
		}
		n, err := c.rest.Read(b)
		if err == io.EOF {
			c.rest, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

func (c *wsConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.WriteMessage(websocket.BinaryMessage, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *wsConn) Close() (err error) {
	c.once.Do(func() {
		_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeWait))
		err = c.Conn.Close()
	})
	return err
}

func (c *wsConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}
