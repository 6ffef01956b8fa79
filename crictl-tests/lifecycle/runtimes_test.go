package lifecycle

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestInheritedDescriptorsAreClosed: a script that starts the daemon with a pipe open does not wait for what outlives the daemon.
func TestInheritedDescriptorsAreClosed(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t)
	r, w, err := os.Pipe()
	d.Must(err)
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", `exec 9>&3; exec "$0" serve --config "$1"`, harness.Binary(d.Binary), d.ConfigFile())
	cmd.Env = append(os.Environ(), d.Env...)
	log, err := os.OpenFile(d.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	d.Must(err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.Must(cmd.Start())
	d.Process = harness.Watch(cmd)
	w.Close()
	d.WaitReady()
	d.Empty = d.Ledger()
	c := d.RunPod().Run(harness.Idle())
	r.SetReadDeadline(time.Now().Add(30 * time.Second))
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("the pipe is open while cribox runs: %q %v", b, err)
	}
	c.Remove()
}

// TestRuntimeWithoutPreserveFDs: a runtime whose `run` has no such option (Debian's runsc) runs pods. It is told once, not at every pod.
func TestRuntimeWithoutPreserveFDs(t *testing.T) {
	t.Parallel()
	d := harness.WithWrappers(t, map[string]string{"bare": `for a; do
	case $a in --preserve-fds) echo >>$dir/refused
		printf 'flag provided but not defined: -preserve-fds\nUsage of run:\n\t-bundle value\n' >&2; exit 2;; esac
done`})
	d.Start()
	d.Empty = d.Ledger()
	for range 2 {
		p, err := d.InHandler("bare")
		if err != nil {
			t.Fatal(err)
		}
		c := p.Run(harness.Shell("echo hello; exec sleep 1000000"))
		c.WaitLog("hello")
		if out := c.Exec("echo", "word"); out != "word\n" {
			t.Errorf("exec: %q", out)
		}
	}
	tries, err := os.ReadFile(d.Dir + "/refused")
	if err != nil || len(tries) != 1 {
		t.Errorf("the option was tried %d times: %v", len(tries), err)
	}
}

// TestRuntimeSaysWhy: what a runtime that fails has logged or printed last is in the error.
func TestRuntimeSaysWhy(t *testing.T) {
	t.Parallel()
	// The fourth argument is the log: --root DIR --log FILE.
	d := harness.WithWrappers(t, map[string]string{
		"pods":       `case "$*" in *" run "*) printf 'first\nthe sandbox is full\n' >&2; exit 128;; esac`,
		"containers": `case "$*" in *" run "*--preserve-fds*) ;; *" run "*) printf 'first\nthe kernel is too old\n' >&2; exit 128;; esac`,
		"crashes":    `case "$*" in *" run "*) printf 'panic: nil map\n\ngoroutine 1 [running]:\nmain.go:3\n' >&2; exit 2;; esac`,
		"logged":     `case "$*" in *" run "*) echo '{"level":"error","msg":"as logged"}' >"$4"; echo printed >&2; exit 1;; esac`,
	})
	d.Start()
	d.Empty = d.Ledger()
	for handler, want := range map[string]string{"pods": "exit status 128: the sandbox is full", "crashes": "panic: nil map", "logged": "as logged"} {
		if _, err := d.InHandler(handler); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", handler, err)
		}
	}
	p, err := d.InHandler("containers")
	if err != nil {
		t.Fatal(err)
	}
	for what, option := range map[string]harness.ContainerOption{
		"plain": harness.With(func(*cri.ContainerConfig) {}), "at a terminal": harness.With(func(c *cri.ContainerConfig) { c.Tty = true }),
	} {
		c := p.Create(harness.Idle(), option)
		if err := c.TryStart(); err == nil || !strings.Contains(err.Error(), "the kernel is too old") {
			t.Errorf("%s: %v", what, err)
		}
		if st := c.Status(); !strings.Contains(st.Message, "the kernel is too old") {
			t.Errorf("%s: message %q", what, st.Message)
		}
		c.Remove()
	}
}
