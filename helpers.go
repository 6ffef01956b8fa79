package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/log"

	"github.com/cribox/cribox/runtimeshim/client"
)

// helperWait is how long a program may take to say its version.
const helperWait = 10 * time.Second

// connect connects to the shim and the logger, and starts them if needed.
func connect(ctx context.Context, c client.Config) (*client.Client, error) {
	program, err := helperProgram(ctx)
	if err != nil {
		return nil, err
	}
	c.Executable = program
	return client.Connect(ctx, c)
}

// helperProgram returns the program that is started as shim and as logger: the one whose name is this
// program's with "-helper", if it lies beside it and has its version, or else this program, which can
// do the same with more memory.
func helperProgram(ctx context.Context) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := own + "-helper"
	ctx, cancel := context.WithTimeout(ctx, helperWait)
	defer cancel()
	said, err := exec.CommandContext(ctx, beside, "version").Output()
	want := "cribox-helper " + versionString()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return own, nil
	case err != nil:
		log.G(ctx).WithError(err).Warnf("%s cannot be executed; shim and logger are started from %s", beside, own)
		return own, nil
	case strings.TrimSpace(string(said)) != want:
		log.G(ctx).Warnf("%s is %q, not %q; shim and logger are started from %s",
			beside, strings.TrimSpace(string(said)), want, own)
		return own, nil
	}
	return beside, nil
}
