package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/helper"
)

const (
	featuresWait  = 10 * time.Second // limit for the command features: a slow machine needs more than 5 s
	featuresGrace = time.Second      // after that, for its children to close the pipe
	featuresBytes = 1 << 20          // runc prints 4 KiB
)

// AskFeatures executes the runtime's command features. ErrNotImplemented if it exits with an error,
// as runtimes without that command do. ErrUnavailable if it cannot be executed, exceeds its time
// limit or is killed: then it may succeed another time.
func AskFeatures(ctx context.Context, runtime string) (runtimeshim.Features, error) {
	name := filepath.Base(runtime)
	out, err := askFeatures(ctx, runtime)
	var ended *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &ended) && ended.Exited():
		return runtimeshim.Features{}, fmt.Errorf("%s features: %w: %w", name, err, errdefs.ErrNotImplemented)
	default:
		return runtimeshim.Features{}, fmt.Errorf("%s features: %w: %w", name, err, errdefs.ErrUnavailable)
	}
	var said features.Features
	if err := json.Unmarshal(out, &said); err != nil {
		return runtimeshim.Features{}, fmt.Errorf("%s features: %w: %w", name, err, errdefs.ErrNotImplemented)
	}
	return readFeatures(said), nil
}

func askFeatures(ctx context.Context, runtime string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, featuresWait)
	defer cancel()
	var out bounded
	cmd := exec.CommandContext(ctx, runtime, "features")
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.WaitDelay = helper.PlainEnv, "/", &out, featuresGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("no answer: %w", ctx.Err())
	}
	return out.b.Bytes(), err
}

func readFeatures(said features.Features) runtimeshim.Features {
	f := runtimeshim.Features{RecursiveReadOnly: slices.Contains(said.MountOptions, "rro"), OCIVersion: said.OCIVersionMax}
	for key, value := range said.Annotations {
		// org.opencontainers.runc.version or run.oci.crun.version
		if strings.HasSuffix(key, ".version") && !strings.Contains(key, "seccomp") {
			f.Version = value
			if key == "org.opencontainers.runc.version" {
				f.Flaw, f.Native = RuncFlaw(value), runcSince(value, firstNative)
			}
		}
	}
	if said.Linux != nil {
		f.UserNamespaces = slices.Contains(said.Linux.Namespaces, "user")
		if m := said.Linux.MountExtensions; m != nil && m.IDMap != nil && m.IDMap.Enabled != nil {
			f.IDMappedMounts = *m.IDMap.Enabled
		}
	}
	return f
}

// bounded keeps what is written to it, and fails above featuresBytes.
type bounded struct{ b bytes.Buffer }

func (w *bounded) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > featuresBytes {
		return 0, fmt.Errorf("more than %d bytes", featuresBytes)
	}
	return w.b.Write(p)
}
