package bridge

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestKindError: a kernel that has no bridges says EOPNOTSUPP, of which nobody learns what to do.
func TestKindError(t *testing.T) {
	err := kindError(unix.EOPNOTSUPP, "bridge")
	if !errdefs.IsUnavailable(err) || !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "module bridge") {
		t.Error(err)
	}
	if err := kindError(unix.EPERM, "bridge"); err != unix.EPERM {
		t.Error(err)
	}
}
