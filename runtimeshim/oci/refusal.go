package oci

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// refusals are parts of runtime messages which mean that the kernel rejects a limit for this
// cgroup, because of what it uses now or because of its parent's limits.
var refusals = []string{
	"invalid argument", "permission denied", "operation not permitted", "device or resource busy",
	"no space left on device",
	"numerical result out of range", "no such file or directory",
	"memory limit", "memory+swap limit", "can't be set", "allowed cpu-shares",
}

// ClassOfRefusal adds an errdefs class to the error of a runtime's update, if it is a known one.
func ClassOfRefusal(err error) error {
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	said := err.Error()
	if strings.Contains(said, "unified resource") && strings.Contains(said, "invalid argument") {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, r := range refusals {
		if strings.Contains(said, r) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return err
}
