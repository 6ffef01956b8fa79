package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestLacksAreResourceExhausted: a lack of resources on the node is ErrResourceExhausted.
func TestLacksAreResourceExhausted(t *testing.T) {
	for _, msg := range []string{"fork/exec /proc/self/exe: cannot allocate memory", "open /x: too many open files", "mkdir: no space left on device",
		"unable to create session key: disk quota exceeded", "fork/exec: resource temporarily unavailable"} {
		if class := classOfMessage(msg); class != errdefs.ErrResourceExhausted {
			t.Errorf("%q is %v", msg, class)
		}
	}
}

func TestLastLogError(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{
		"": "",
		`{"level":"warning","msg":"a"}` + "\n" + `{"level":"error","msg":"b"}` + "\n" + `{"level":"info","msg":"c"}` + "\n": "b",
		"panic: oh\n\ngoroutine 1\n":                                    "panic: oh",
		strings.Repeat("x", 100000):                                     strings.Repeat("x", 4096),
		strings.Repeat("{}\n", 50000) + `{"level":"error","msg":"end"}`: "end",
	} {
		os.WriteFile(name, []byte(text), 0o600)
		if got := lastLogError(name); got != want {
			t.Errorf("got %.60q (%d), want %.60q", got, len(got), want)
		}
	}
	if got := lastLogError(name + "x"); got != "" {
		t.Errorf("no log: %q", got)
	}
}
