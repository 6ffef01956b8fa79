package runtimeshim

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSocketIsMadeAgainWithoutLooking: a server learns from the kernel that its socket is gone, and does not wake up to look.
func TestSocketIsMadeAgainWithoutLooking(t *testing.T) {
	lasting(t, &socketCheck, time.Hour)
	lasting(t, &unwatchedLook, time.Hour)
	for name, harm := range map[string]func(path string) error{
		"removed":  os.Remove,
		"moved":    func(path string) error { return os.Rename(path, path+".away") },
		"replaced": func(path string) error { return replace(path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "crb")
			must(t, err)
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "s.sock")
			ctx, cancel := context.WithTimeout(t.Context(), testWait)
			served := make(chan error, 1)
			go func() {
				served <- serveAt(ctx, path, map[string]handler{"ping": func(context.Context, *inbound) (any, error) { return nil, nil }})
			}()
			h := &host{t: t}
			h.eventually("it answers", func() bool { _, err := call(ctx, path, "ping", nil, nil, nil); return err == nil })
			must(t, harm(path))
			h.eventually("it answers again", func() bool { _, err := call(ctx, path, "ping", nil, nil, nil); return err == nil })
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// replace puts another file in the place of path.
func replace(path string) error {
	if err := os.WriteFile(path+".other", nil, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".other", path)
}

// TestPaceOfALogTask: a container that prints lines all the time is read in batches, one that fills its FIFO before it is full.
func TestPaceOfALogTask(t *testing.T) {
	task := &logTask{streams: [2]*source{{pipe: 64 << 10}}}
	for _, c := range []struct {
		n     int
		since time.Duration
		want  time.Duration
	}{
		{80, 5 * time.Millisecond, longestPace},                // 200 lines a second
		{80, 100 * time.Microsecond, 20480 * time.Microsecond}, // 10,000 lines a second
		{16 << 10, 10 * time.Millisecond, 10 * time.Millisecond},
		{30 << 10, time.Millisecond, shortestPace},
	} {
		if got := task.pace(0, c.n, c.since); got != c.want {
			t.Errorf("%d bytes in %v: looks again after %v, want %v", c.n, c.since, got, c.want)
		}
	}
	task.taps[0] = []*tap{{}}
	if got := task.pace(0, 80, 5*time.Millisecond); got != shortestPace {
		t.Errorf("who is attached waits %v", got)
	}
}
