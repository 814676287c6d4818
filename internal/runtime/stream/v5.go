package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// Bounds on messages, in and out.
const (
	maxMessage = 32 << 20
	maxResize  = 4096
	frame      = 32 << 10
	closeWait  = 5 * time.Second
)

// channels is a connection of v5.channel.k8s.io: every message begins with the
// number of its channel; on channel 255 the client says which one it has closed.
type channels struct {
	conn  *websocket.Conn
	opts  *remotecommand.Options
	sizes chan remotecommand.TerminalSize
	// gone ends when the client has gone.
	gone context.Context

	stdin *io.PipeReader
	feed  *io.PipeWriter
	idle  *time.Timer
	mu    sync.Mutex // one message is written at a time
}

// serve answers with the streams of a command, runs it, and tells how it ended.
func serve(w http.ResponseWriter, r *http.Request, opts *remotecommand.Options, run func(context.Context, *channels) error) {
	up := websocket.Upgrader{Subprotocols: []string{remotecommand.StreamProtocolV5Name}, ReadBufferSize: frame, WriteBufferSize: frame,
		// Who may come is decided before; there are no cookies that a foreign page could use.
		CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // the client was told
	}
	gone, leave := context.WithCancel(context.Background())
	c := &channels{conn: conn, opts: opts, sizes: make(chan remotecommand.TerminalSize, 1), gone: gone}
	c.stdin, c.feed = io.Pipe()
	c.idle = time.AfterFunc(idleTimeout, func() { conn.Close() })
	defer c.idle.Stop()
	// The hijacked connection's context does not end with it.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// An empty message says that the streams are there.
	first := byte(remotecommand.StreamErr)
	switch {
	case opts.Stdout:
		first = remotecommand.StreamStdOut
	case opts.Stderr:
		first = remotecommand.StreamStdErr
	}
	_ = c.send(first, nil)

	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(c.sizes)
		defer leave()
		c.read()
		c.feed.Close()
		if opts.TTY { // as a terminal that hangs up; without one the program notices by its streams
			cancel()
		}
	})
	err = run(ctx, c)
	c.stdin.Close()
	_ = c.send(remotecommand.StreamErr, outcome(err))
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeWait))
	// The client answers and closes; what it has still sent is read, or it would lose
	// what is on its way to it.
	_ = conn.NetConn().SetReadDeadline(time.Now().Add(closeWait))
	reading.Wait()
	conn.Close()
}

// read takes what the client sends until it closes or has gone.
func (c *channels) read() {
	c.conn.SetReadLimit(maxMessage)
	for {
		kind, r, err := c.conn.NextReader()
		if err != nil {
			return
		}
		c.idle.Reset(idleTimeout)
		var channel [1]byte
		if _, err := io.ReadFull(r, channel[:]); err != nil || kind != websocket.BinaryMessage {
			continue
		}
		switch channel[0] {
		case remotecommand.StreamStdIn:
			// A program that has stopped reading is no reason to stop hearing of resizes.
			_, _ = io.Copy(c.feed, r)
		case remotecommand.StreamResize:
			var size remotecommand.TerminalSize
			if json.NewDecoder(io.LimitReader(r, maxResize)).Decode(&size) == nil {
				c.resize(size)
			}
		case remotecommand.StreamClose:
			if _, err := io.ReadFull(r, channel[:]); err == nil && channel[0] == remotecommand.StreamStdIn {
				c.feed.Close()
			}
		}
	}
}

// resize hands on the newest size; one that was not taken yet is forgotten.
func (c *channels) resize(size remotecommand.TerminalSize) {
	for {
		select {
		case c.sizes <- size:
			return
		default:
		}
		select {
		case <-c.sizes:
		default:
		}
	}
}

// send writes one message.
func (c *channels) send(channel byte, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, err := c.conn.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	_, err = w.Write([]byte{channel})
	if err == nil {
		_, err = w.Write(b)
	}
	return errors.Join(err, w.Close())
}

// output is a channel that the program writes to.
type output struct {
	c       *channels
	channel byte
}

func (o output) Write(b []byte) (int, error) {
	o.c.idle.Reset(idleTimeout)
	done := 0
	for done < len(b) {
		n := min(frame, len(b)-done)
		if err := o.c.send(o.channel, b[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (output) Close() error { return nil }

// in, out and errOut are the streams that were asked for; nil the others.
func (c *channels) in() io.Reader {
	if !c.opts.Stdin {
		return nil
	}
	return c.stdin
}

func (c *channels) out() io.WriteCloser {
	if !c.opts.Stdout {
		return nil
	}
	return output{c, remotecommand.StreamStdOut}
}

func (c *channels) errOut() io.WriteCloser {
	if !c.opts.Stderr {
		return nil
	}
	return output{c, remotecommand.StreamStdErr}
}

// result is what of metav1.Status tells how a command ended.
type result struct {
	Metadata struct{}       `json:"metadata"`
	Status   string         `json:"status"`
	Message  string         `json:"message,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Details  *resultDetails `json:"details,omitempty"`
	Code     int            `json:"code,omitempty"`
}

type resultDetails struct {
	Causes []resultCause `json:"causes,omitempty"`
}

type resultCause struct {
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

func outcome(err error) []byte {
	r := result{Status: "Success"}
	var exit utilexec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Exited():
		r = result{Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &resultDetails{Causes: []resultCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.ExitStatus())}}}}
	default:
		text := fmt.Sprintf("Internal error occurred: error executing command in container: %v", err)
		r = result{Status: "Failure", Reason: "InternalError", Message: text, Code: http.StatusInternalServerError, Details: &resultDetails{Causes: []resultCause{{Message: err.Error()}}}}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil
	}
	return b
}
