package overlay

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
)

const MaxLayers = 500 // lower directories of one overlay mount

// RootMode is the mode that the root of every layer has at least.
const RootMode = 0o555

// SetOpaque makes a directory hide the directories of the same name in lower layers.
func SetOpaque(fd int) error {
	if err := unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark a directory opaque: %w", fault.Disk(err))
	}
	return nil
}

func IsOpaque(fd int) bool {
	b := make([]byte, 2)
	n, err := unix.Fgetxattr(fd, "trusted.overlay.opaque", b)
	return err == nil && n == 1 && b[0] == 'y'
}
