package proxy

import (
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// Protocols of a stream over a WebSocket: what is asked for without one is binary.
const (
	binaryProtocol = "binary.k8s.io"
	base64Protocol = "base64.binary.k8s.io"
)

// socketWrite bounds how long one message may take to leave.
const socketWrite = 30 * time.Second

func isWebSocket(r *http.Request) bool {
	return isUpgrade(r) && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// logSocket sends a log as the messages of a WebSocket.
func logSocket(w http.ResponseWriter, r *http.Request, body io.Reader) {
	up := websocket.Upgrader{
		CheckOrigin:  func(*http.Request) bool { return true }, // as in Kubernetes: the token decides
		Subprotocols: []string{binaryProtocol, base64Protocol},
	}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	gone := make(chan struct{})
	go func() { // ends with the connection, which is closed before it is waited for
		defer close(gone)
		conn.SetReadLimit(4 << 10)
		for {
			if _, _, err := conn.NextReader(); err != nil {
				return
			}
		}
	}()
	defer func() {
		_ = conn.Close()
		<-gone
	}()
	kind, encode := websocket.BinaryMessage, func(p []byte) []byte { return p }
	if conn.Subprotocol() == base64Protocol {
		kind, encode = websocket.TextMessage, func(p []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(p)) }
	}
	send := func(p []byte) error {
		_ = conn.SetWriteDeadline(time.Now().Add(socketWrite))
		return conn.WriteMessage(kind, encode(p))
	}
	if send(nil) != nil { // says that the stream is open, before there is anything to send
		return
	}
	type part struct {
		b   []byte
		err error
	}
	parts := make(chan part)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends when body does, which the caller closes, or with stop
		for {
			buf := make([]byte, 32<<10)
			n, err := body.Read(buf)
			select {
			case parts <- part{buf[:n], err}:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case <-gone:
			return
		case p := <-parts:
			if len(p.b) > 0 && send(p.b) != nil {
				return
			}
			if p.err != nil {
				_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
				return
			}
		}
	}
}
