package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain plays the process in the background when a test starts one.
func TestMain(m *testing.M) {
	if role, data := os.Getenv("ROLE"), os.Getenv("DATA"); role != "" {
		os.Exit(play(role, data))
	}
	os.Exit(m.Run())
}

func play(role, data string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	to := Background()
	to.Step("one")
	fmt.Println("a line for the log")
	if role == "fail" {
		to.Fail(errors.New("first\nsecond"))
		return 1
	}
	if role == "crash" {
		return 7
	}
	release, err := Acquire(data, Info{Version: "v1", Server: "https://x"})
	if err != nil {
		to.Fail(err)
		return 1
	}
	defer release()
	to.Step("two")
	if role == "run" {
		to.Ready()
	}
	<-ctx.Done()
	return 0
}

func detach(t *testing.T, ctx context.Context, role, data string) ([]string, error) {
	t.Helper()
	t.Setenv("ROLE", role)
	t.Setenv("DATA", data)
	var steps []string
	err := Detach(ctx, data, nil, func(s string) { steps = append(steps, s) })
	return steps, err
}

func TestDetachedProcessIsFoundAndStopped(t *testing.T) {
	data := t.TempDir()
	if _, err := Find(data); !errors.Is(err, ErrNone) {
		t.Fatalf("Find before: %v", err)
	}
	steps, err := detach(t, t.Context(), "run", data)
	if err != nil || strings.Join(steps, ",") != "one,two" {
		t.Fatalf("Detach: %v, %v", steps, err)
	}
	info, err := Find(data)
	if err != nil || info.PID == os.Getpid() || info.Server != "https://x" {
		t.Fatalf("Find: %+v, %v", info, err)
	}
	if _, err := Acquire(data, Info{}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("as process %d", info.PID)) {
		t.Errorf("a second process was let in: %v", err)
	}
	if again, err := Find(data); err != nil || again.PID != info.PID {
		t.Errorf("after the second process: %+v, %v", again, err)
	}
	if b, _ := os.ReadFile(Log(data)); !strings.Contains(string(b), "a line for the log") {
		t.Errorf("the log: %q", b)
	}
	go func() { // the child of this process must be waited for, or it stays a zombie
		var status unix.WaitStatus
		_, _ = unix.Wait4(info.PID, &status, 0, nil)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := Stop(ctx, data); err != nil {
		t.Fatal(err)
	}
	if _, err := Find(data); !errors.Is(err, ErrNone) {
		t.Errorf("Find after: %v", err)
	}
	if _, err := Stop(ctx, data); !errors.Is(err, ErrNone) {
		t.Errorf("Stop after: %v", err)
	}
}

func TestDetachTellsWhyTheProcessEnded(t *testing.T) {
	for role, want := range map[string]string{"fail": "first; second", "crash": "exit status 7"} {
		if _, err := detach(t, t.Context(), role, t.TempDir()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", role, err, want)
		}
	}
}

func TestDetachEndsTheProcessWithItsContext(t *testing.T) {
	data := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := detach(t, ctx, "hang", data); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Detach: %v", err)
	}
	if _, err := Find(data); !errors.Is(err, ErrNone) {
		t.Errorf("the process lives on: %v", err)
	}
}

func TestTheLockEndsWithAKilledProcess(t *testing.T) {
	data := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ROLE=run", "DATA="+data)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if _, err := Find(data); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := Find(data); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	release, err := Acquire(data, Info{})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if info, err := Find(data); err != nil || info.PID != os.Getpid() {
		t.Errorf("Find: %+v, %v", info, err)
	}
}
