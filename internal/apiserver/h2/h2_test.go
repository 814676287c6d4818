package h2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// start serves a handler; the client speaks HTTP/2 on one connection.
func start(t testing.TB, s *Server, h http.HandlerFunc) (*httptest.Server, *http.Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Listener = Listener(server.Listener)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.Config.TLSConfig = server.TLS
	s.Attach(server.Config)
	server.TLS.NextProtos = server.Config.TLSConfig.NextProtos
	server.StartTLS()
	t.Cleanup(server.Close)
	client := server.Client()
	client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	return server, client
}

func call(t testing.TB, c *http.Client, r *http.Request) (*http.Response, []byte) {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ProtoMajor != 2 {
		t.Fatalf("answered with %s", resp.Proto)
	}
	return resp, b
}

func request(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRequestsAndAnswers(t *testing.T) {
	server, client := start(t, &Server{}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/small":
			w.Header().Set("X-Seen", fmt.Sprint(r.Host != "", r.TLS != nil, r.RemoteAddr != "", r.URL.Query().Get("q"), r.Header.Get("Cookie"), r.Header["X-Two"]))
			fmt.Fprint(w, "hello")
		case "/echo":
			w.WriteHeader(http.StatusCreated)
			w.Header().Set("Late", "not sent")
			_, _ = io.Copy(w, r.Body)
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		case "/headers":
			for i := range 100 {
				w.Header().Set("X-"+strconv.Itoa(i), strings.Repeat("v", 1000))
			}
		case "/trailer":
			w.Header().Set("Trailer", "X-Sum")
			fmt.Fprint(w, "body")
			w.Header().Set("X-Sum", "7")
		case "/unread":
			fmt.Fprint(w, "did not read")
		case "/length":
			w.Header().Set("Content-Length", "3")
			_, err := w.Write([]byte("four"))
			_, _ = w.Write([]byte("123"))
			if !errors.Is(err, http.ErrContentLength) {
				t.Errorf("more than the length: %v", err)
			}
		}
	})
	r := request(t, "GET", server.URL+"/small?q=1", nil)
	r.Header["Cookie"] = []string{"a=1; b=2"}
	r.Header["X-Two"] = []string{"x", "y"}
	resp, b := call(t, client, r)
	if string(b) != "hello" || resp.ContentLength != 5 || resp.Header.Get("X-Seen") != "true true true1a=1; b=2[x y]" || resp.Header.Get("Date") == "" {
		t.Errorf("%s %d %v", b, resp.ContentLength, resp.Header)
	}
	big := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(big)
	for _, size := range []int{0, 1, 100, 4096, 4097, 65535, 1 << 20, len(big)} {
		resp, b := call(t, client, request(t, "POST", server.URL+"/echo", bytes.NewReader(big[:size])))
		if !bytes.Equal(b, big[:size]) || resp.StatusCode != http.StatusCreated || resp.Header.Get("Late") != "" {
			t.Errorf("echo of %d bytes: %d bytes, %s", size, len(b), resp.Status)
		}
	}
	if resp, b := call(t, client, request(t, "HEAD", server.URL+"/small", nil)); len(b) != 0 || resp.StatusCode != 200 {
		t.Errorf("HEAD: %q %s", b, resp.Status)
	}
	if resp, b := call(t, client, request(t, "GET", server.URL+"/empty", nil)); len(b) != 0 || resp.StatusCode != 204 || resp.Header.Get("Content-Length") != "" {
		t.Errorf("204: %q %v", b, resp.Header)
	}
	if resp, _ := call(t, client, request(t, "GET", server.URL+"/headers", nil)); len(resp.Header) < 100 {
		t.Errorf("%d headers", len(resp.Header))
	}
	if resp, b := call(t, client, request(t, "GET", server.URL+"/trailer", nil)); string(b) != "body" || resp.Trailer.Get("X-Sum") != "7" {
		t.Errorf("trailer: %q %v", b, resp.Trailer)
	}
	if _, b := call(t, client, request(t, "POST", server.URL+"/unread", bytes.NewReader(big[:4<<20]))); string(b) != "did not read" {
		t.Errorf("a body that is not read: %q", b)
	}
	if _, b := call(t, client, request(t, "GET", server.URL+"/length", nil)); string(b) != "123" {
		t.Errorf("a length: %q", b)
	}
	r = request(t, "POST", server.URL+"/echo", strings.NewReader("please"))
	r.Header.Set("Expect", "100-continue")
	if _, b := call(t, client, r); string(b) != "please" {
		t.Errorf("100-continue: %q", b)
	}
	// After all of it the windows are whole: much more than one fits through.
	for range 6 {
		if _, b := call(t, client, request(t, "POST", server.URL+"/echo", bytes.NewReader(big))); sha256.Sum256(b) != sha256.Sum256(big) {
			t.Fatal("the echo is another")
		}
	}
}

// Many requests at a time, large and small, do not mix.
func TestManyAtATime(t *testing.T) {
	server, client := start(t, &Server{}, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		piece := []byte(strings.Repeat(r.URL.Query().Get("c"), 1000))
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprint(w, len(b), ":")
		for range n {
			_, _ = w.Write(piece)
		}
	})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			c, n, sent := string(rune('a'+i%26)), (i*37)%500, i*1000
			resp, err := client.Do(request(t, "POST", fmt.Sprintf("%s/?n=%d&c=%s", server.URL, n, c), strings.NewReader(strings.Repeat("x", sent))))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if want := fmt.Sprint(sent, ":") + strings.Repeat(c, n*1000); err != nil || string(b) != want {
				t.Errorf("%d: %d bytes, want %d: %v", i, len(b), len(want), err)
			}
		})
	}
	wg.Wait()
}

func TestStreaming(t *testing.T) {
	next := make(chan string)
	ended := make(chan error, 1)
	server, client := start(t, &Server{}, func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case s := <-next:
				fmt.Fprint(w, s)
				if err := http.NewResponseController(w).Flush(); err != nil {
					t.Error(err)
				}
			case <-r.Context().Done():
				_, err := w.Write(make([]byte, 1<<20))
				ended <- err
				return
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { next <- "" }() // the headers leave with the first flush
	resp, err := client.Do(request(t, "GET", server.URL, nil).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, s := range []string{"one", "two"} {
		next <- s
		b := make([]byte, 3)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != s {
			t.Fatalf("%q %v", b, err)
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a write to a client that is gone succeeds")
		}
	case <-time.After(5 * time.Second):
		t.Error("the handler does not learn that the client is gone")
	}
}

// A client that does not read one answer gets the others, and the one later.
func TestAStreamThatIsNotReadHoldsNobodyUp(t *testing.T) {
	var wrote atomic.Int64
	server, client := start(t, &Server{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			for range 32 {
				n, _ := w.Write(make([]byte, 1<<20))
				wrote.Add(int64(n))
			}
			return
		}
		fmt.Fprint(w, "ok")
	})
	resp, err := client.Do(request(t, "GET", server.URL+"/large", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 50 {
		if _, b := call(t, client, request(t, "GET", server.URL+"/small", nil)); string(b) != "ok" {
			t.Fatal(string(b))
		}
	}
	if wrote.Load() == 32<<20 {
		t.Error("the window holds nothing back")
	}
	if n, err := io.Copy(io.Discard, resp.Body); n != 32<<20 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestPanicsAndDeadlines(t *testing.T) {
	read := make(chan error, 1)
	server, client := start(t, &Server{}, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		switch r.URL.Path {
		case "/panic":
			panic("on purpose")
		case "/abort":
			fmt.Fprint(w, "some")
			_ = control.Flush()
			panic(http.ErrAbortHandler)
		case "/write":
			if err := control.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Error(err)
			}
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 1<<20))
			}
		case "/read":
			_ = control.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, err := io.ReadAll(r.Body)
			read <- err
		case "/later":
			_ = control.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
			_ = control.SetWriteDeadline(time.Time{})
			time.Sleep(30 * time.Millisecond)
		}
	})
	for _, path := range []string{"/panic", "/abort", "/write"} {
		resp, err := client.Do(request(t, "GET", server.URL+path, nil))
		if err == nil {
			time.Sleep(100 * time.Millisecond)
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err == nil {
			t.Errorf("%s ended well", path)
		}
	}
	call(t, client, request(t, "GET", server.URL+"/later", nil))
	pr, pw := io.Pipe()
	defer pw.Close()
	go func() { _, _ = pw.Write([]byte("x")) }()
	resp, err := client.Do(request(t, "POST", server.URL+"/read", pr))
	if err == nil {
		resp.Body.Close()
	}
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	began, release := make(chan bool), make(chan bool)
	server, client := start(t, &Server{}, func(w http.ResponseWriter, r *http.Request) {
		began <- true
		<-release
		fmt.Fprint(w, "done")
	})
	answer := make(chan string, 1)
	go func() {
		resp, err := client.Do(request(t, "GET", server.URL, nil))
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answer <- string(b)
	}()
	<-began
	go func() { _ = server.Config.Shutdown(t.Context()) }()
	time.Sleep(20 * time.Millisecond)
	close(release)
	if got := <-answer; got != "done" {
		t.Error(got)
	}
}

func TestAnIdleConnectionIsClosed(t *testing.T) {
	server, client := start(t, &Server{IdleTimeout: 50 * time.Millisecond, PingAfter: 20 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.RemoteAddr)
	})
	_, first := call(t, client, request(t, "GET", server.URL, nil))
	_, second := call(t, client, request(t, "GET", server.URL, nil))
	time.Sleep(300 * time.Millisecond)
	_, third := call(t, client, request(t, "GET", server.URL, nil))
	if !bytes.Equal(first, second) || bytes.Equal(first, third) {
		t.Errorf("%s %s %s", first, second, third)
	}
}

// raw is a client that says what it likes.
type raw struct {
	*http2.Framer
	conn net.Conn
}

func dial(t testing.TB, server *httptest.Server) raw {
	t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(server.URL, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, http2.ClientPreface)
	r := raw{http2.NewFramer(c, c), c}
	_ = r.WriteSettings()
	return r
}

// ends returns how the server ends the connection.
func (r raw) ends() string {
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return "closed"
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			return g.ErrCode.String()
		}
	}
}

// A client that breaks the rules, or asks for more than it reads, is left; the
// server serves the next (RFC 9113; CVE-2019-9512 and its kin, CVE-2023-44487).
func TestClientsThatBreakTheRules(t *testing.T) {
	var most, now atomic.Int64
	server, client := start(t, &Server{MaxStreams: 50}, func(w http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		if r.URL.Path == "/slow" {
			time.Sleep(5 * time.Millisecond)
		}
		_, _ = io.Copy(io.Discard, r.Body)
	})
	headers := func(path string) []byte { // method GET, scheme https, path, authority x
		return append([]byte{0x82, 0x87, 0x04, byte(len(path))}, append([]byte(path), 0x41, 1, 'x')...)
	}
	for name, c := range map[string]struct {
		do   func(r raw)
		want string
	}{
		"data on no stream": {func(r raw) { _ = r.WriteData(1, true, []byte("x")) }, "PROTOCOL_ERROR"},
		"an even stream": {func(r raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2, BlockFragment: headers("/"), EndHeaders: true})
		}, "PROTOCOL_ERROR"},
		"a window that overflows": {func(r raw) { _ = r.WriteWindowUpdate(0, 1<<31-1) }, "FLOW_CONTROL_ERROR"},
		"a wrong setting":         {func(r raw) { _ = r.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, "PROTOCOL_ERROR"},
		"a frame too large":       {func(r raw) { _ = r.WriteRawFrame(0, 0, 1, make([]byte, 20000)) }, "FRAME_SIZE_ERROR"},
		"headers that go on":      {func(r raw) { _ = r.WriteRawFrame(http2.FrameContinuation, 0, 1, nil) }, "PROTOCOL_ERROR"},
		"broken compression": {func(r raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, "COMPRESSION_ERROR"},
		"more than the window": {func(r raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers("/slow"), EndHeaders: true})
			for range connWindow/16384 + 2 {
				if r.WriteData(1, false, make([]byte, 16384)) != nil {
					return
				}
			}
		}, "RST"},
		"pings without end": {func(r raw) {
			for range 400_000 {
				if r.WritePing(false, [8]byte{}) != nil {
					return
				}
			}
		}, ""},
		"resets without end": {func(r raw) {
			for i := range 20_000 {
				id := uint32(2*i + 1)
				if r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers("/slow"), EndHeaders: true, EndStream: true}) != nil || r.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					return
				}
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := dial(t, server)
			done := make(chan string, 1)
			if c.want != "" && c.want != "RST" {
				go func() { done <- r.ends() }()
				c.do(r)
				if got := <-done; got != c.want {
					t.Errorf("ended with %s, want %s", got, c.want)
				}
			} else {
				c.do(r)
				r.conn.Close()
			}
			call(t, client, request(t, "GET", server.URL, nil))
		})
	}
	if most.Load() > 60 {
		t.Errorf("%d requests at a time", most.Load())
	}
}

// FuzzFrames sends anything after the preface; the server must go on to serve.
func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	fr := http2.NewFramer(&b, nil)
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82, 0x87, 0x84, 0x41, 1, 'x'}, EndHeaders: true})
	_ = fr.WriteData(1, true, []byte("body"))
	_ = fr.WriteWindowUpdate(1, 10)
	_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
	f.Add(b.Bytes())
	server, client := start(f, &Server{}, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	f.Fuzz(func(t *testing.T, frames []byte) {
		r := dial(t, server)
		_, _ = r.conn.Write(frames)
		_ = r.WriteGoAway(0, http2.ErrCodeNo, nil)
		r.conn.Close()
		call(t, client, request(t, "GET", server.URL, nil))
	})
}
