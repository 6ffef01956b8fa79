package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// WithWrappers prepares a daemon that has, beside runc, handlers with runtimes that are runc but
// for what a script in sh does before.
func WithWrappers(t *testing.T, scripts map[string]string) *Daemon {
	t.Helper()
	d := PrepareDaemon(t)
	config := d.Configuration()
	for name, script := range scripts {
		path := filepath.Join(d.Dir, name)
		d.Must(WriteProgram(path, fmt.Sprintf("#!/bin/sh\nrunc=%s dir=%s\n%s\nexec $runc \"$@\"\n", Binary("runc"), d.Dir, script)))
		config += fmt.Sprintf("\n[runtimes.%s]\npath = %q\n", name, path)
	}
	d.Must(os.WriteFile(d.ConfigFile(), []byte(config), 0o600))
	return d
}

// WriteProgram writes a file that can be executed at once: no process that is being started beside
// has it open for writing.
func WriteProgram(path, text string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, []byte(text), 0o755)
}

// InHandler runs a pod with a runtime handler.
func (d *Daemon) InHandler(handler string, options ...PodOption) (*Pod, error) {
	config := d.PodConfig(options...)
	r, err := d.Runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	return &Pod{Daemon: d, ID: r.PodSandboxId, Config: config}, nil
}

// WithHandler adds a runtime handler that is runc with settings of its own.
func WithHandler(name, text string) Option {
	return WithConfig(fmt.Sprintf("[runtimes.%s]\npath = %q\n%s\n", name, Binary("runc"), text))
}

// RunPodBy runs a pod of a runtime handler, as a pod with a RuntimeClass asks for.
func (d *Daemon) RunPodBy(handler string, options ...PodOption) *Pod {
	d.Helper()
	config := d.PodConfig(options...)
	r, err := d.Runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	d.Must(err)
	return &Pod{Daemon: d, ID: r.PodSandboxId, Config: config}
}

// Hangup asks the daemon to read its configuration again, and waits until the log says how that
// went.
func (d *Daemon) Hangup(word string) {
	d.Helper()
	before := strings.Count(HostFile(d, d.LogFile()), word)
	d.Process.Signal(syscall.SIGHUP)
	Eventually(d, word, func() error {
		if err := d.Process.Ended(); err != nil {
			return err
		}
		return Unless(strings.Count(HostFile(d, d.LogFile()), word) > before, "the log does not say so")
	})
}
