package sandbox

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/sandbox/node"
)

// isThere says whether there is something at path. An error means that it cannot be told now.
func isThere(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// maxSeccompFile bounds what is read of a seccomp profile.
const maxSeccompFile = 10 << 20

// readSeccomp reads the profile that the kubelet names by its path; "" is none.
func readSeccomp(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("security_context.seccomp.localhost_ref: %w", node.BlameHost(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxSeccompFile {
		return nil, fmt.Errorf("security_context.seccomp.localhost_ref: %s is no file of at most %d bytes: %w", path, maxSeccompFile, errdefs.ErrInvalidArgument)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("security_context.seccomp.localhost_ref: %w", node.BlameHost(err))
	}
	return b, nil
}
