package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestOldKernels checks that mount(2), whose options must fit into one page, mounts the same files
// as the file descriptor based mount API.
func TestOldKernels(t *testing.T) {
	layers := filepath.Join(t.TempDir(), "layers")
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(layers, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var many []string // topmost first
	for i := range 200 {
		write(fmt.Sprint(i, "/fs/f", i), fmt.Sprint(i))
		write(fmt.Sprint(i, "/fs/top"), fmt.Sprint(i))
		many = append([]string{fmt.Sprint(i, "/fs")}, many...)
	}
	if err := os.MkdirAll(filepath.Join(layers, "none"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, lower := range [][]string{many[199:], many} {
		for _, old := range []bool{false, true} {
			for _, readOnly := range []bool{false, true} {
				t.Run(fmt.Sprint(len(lower), " old=", old, " ro=", readOnly), func(t *testing.T) {
					base := filepath.Join(t.TempDir(), "a,b:c\\d")
					s := Spec{Layers: layers, Lower: lower, Dir: filepath.Join(base, "c"), Target: filepath.Join(base, "rootfs"), ReadOnly: readOnly}
					err := Mount(s)
					if old {
						err = errors.Join(err, Unmount(t.Context(), s.Target), os.RemoveAll(s.Dir))
						o := overlay{layers: layers, lower: lower, target: s.Target}
						err = errors.Join(err, o.prepare(s), o.mountOld())
					}
					defer Unmount(context.Background(), s.Target)
					if err != nil {
						t.Fatal(err)
					}
					for name, want := range map[string]string{"f0": "0", "top": fmt.Sprint(len(lower) - 1)} {
						if b, err := os.ReadFile(filepath.Join(s.Target, name)); err != nil || string(b) != want {
							t.Errorf("%s: %q, %v", name, b, err)
						}
					}
					if err := os.WriteFile(filepath.Join(s.Target, "new"), nil, 0o600); (err != nil) != readOnly {
						t.Error(err)
					}
					if err := Mount(s); !errdefs.IsFailedPrecondition(err) {
						t.Errorf("mounted twice: %v", err)
					}
				})
			}
		}
	}
}

// TestPanicApart checks that a panic on the separate thread is returned as an error.
func TestPanicApart(t *testing.T) {
	if err := apart(func() error { panic("oh") }); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a panic comes back as %v", err)
	}
}
