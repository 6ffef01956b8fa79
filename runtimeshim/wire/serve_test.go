package wire

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSocketIsMadeAgainWithoutLooking: the kernel notifies a server that its socket is gone, so
// that the server need not poll.
func TestSocketIsMadeAgainWithoutLooking(t *testing.T) {
	check, look := socketCheck, unwatchedLook
	socketCheck, unwatchedLook = time.Hour, time.Hour
	t.Cleanup(func() { socketCheck, unwatchedLook = check, look })
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
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			served := make(chan error, 1)
			go func() {
				served <- Serve(ctx, path, map[string]Handler{"ping": func(context.Context, *Inbound) (any, error) { return nil, nil }})
			}()
			answers(ctx, t, path)
			must(t, harm(path))
			answers(ctx, t, path)
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// replace puts another file at path.
func replace(path string) error {
	if err := os.WriteFile(path+".other", nil, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".other", path)
}

// answers waits until the server at path replies.
func answers(ctx context.Context, t *testing.T, path string) {
	t.Helper()
	for {
		_, err := Call(ctx, path, "ping", nil, nil, nil)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
