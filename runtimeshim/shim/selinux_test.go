package shim

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProcessLabel(t *testing.T) {
	for spec, want := range map[string]string{
		`{}`:                                     "",
		`{"process": {"selinuxLabel": "u:r:t"}}`: "u:r:t",
		`{"annotations": {"x": "\"selinuxLabel\""}, "process": {}}`:                  "",
		`{"linux": {"mountLabel": "m"}, "process": {"selinuxLabel": "u:r:t:s0:c1"}}`: "u:r:t:s0:c1",
	} {
		config := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(config, []byte(spec), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := processLabel(config); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", spec, got, err, want)
		}
	}
}

// TestLabelledSocket asks for a label that no policy has: the socket is made all the same.
func TestLabelledSocket(t *testing.T) {
	for _, label := range []string{"", "nobody:knows:this:s0"} {
		fd, err := labelledSocket(label)
		if err != nil {
			t.Fatalf("%q: %v", label, err)
		}
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			t.Errorf("%q: kind %d, %v", label, kind, err)
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
}
