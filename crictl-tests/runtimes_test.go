package crictltests

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestInheritedDescriptorsAreClosed: a script that starts the daemon with a pipe open does not wait for what outlives the daemon.
func TestInheritedDescriptorsAreClosed(t *testing.T) {
	t.Parallel()
	d := prepareDaemon(t)
	r, w, err := os.Pipe()
	d.must(err)
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", `exec 9>&3; exec "$0" serve --config "$1"`, binary(d.binary), d.configFile())
	cmd.Env = append(os.Environ(), d.env...)
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	d.must(err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.must(cmd.Start())
	d.process = watch(cmd)
	w.Close()
	d.waitReady()
	d.empty = d.ledger()
	c := d.runPod().run(idle())
	r.SetReadDeadline(time.Now().Add(30 * time.Second))
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("the pipe is open while cribox runs: %q %v", b, err)
	}
	c.remove()
}

// TestRuntimeWithoutPreserveFDs: a runtime whose `run` has no such option (Debian's runsc) runs pods. It is told once, not at every pod.
func TestRuntimeWithoutPreserveFDs(t *testing.T) {
	t.Parallel()
	d := withWrappers(t, map[string]string{"bare": `for a; do
	case $a in --preserve-fds) echo >>$dir/refused
		printf 'flag provided but not defined: -preserve-fds\nUsage of run:\n\t-bundle value\n' >&2; exit 2;; esac
done`})
	d.start()
	d.empty = d.ledger()
	for range 2 {
		p, err := d.inHandler("bare")
		if err != nil {
			t.Fatal(err)
		}
		c := p.run(shell("echo hello; exec sleep 1000000"))
		c.waitLog("hello")
		if out := c.exec("echo", "word"); out != "word\n" {
			t.Errorf("exec: %q", out)
		}
	}
	tries, err := os.ReadFile(d.dir + "/refused")
	if err != nil || len(tries) != 1 {
		t.Errorf("the option was tried %d times: %v", len(tries), err)
	}
}

// TestRuntimeSaysWhy: what a runtime that fails has logged or printed last is in the error.
func TestRuntimeSaysWhy(t *testing.T) {
	t.Parallel()
	// The fourth argument is the log: --root DIR --log FILE.
	d := withWrappers(t, map[string]string{
		"pods":       `case "$*" in *" run "*) printf 'first\nthe sandbox is full\n' >&2; exit 128;; esac`,
		"containers": `case "$*" in *" run "*--preserve-fds*) ;; *" run "*) printf 'first\nthe kernel is too old\n' >&2; exit 128;; esac`,
		"crashes":    `case "$*" in *" run "*) printf 'panic: nil map\n\ngoroutine 1 [running]:\nmain.go:3\n' >&2; exit 2;; esac`,
		"logged":     `case "$*" in *" run "*) echo '{"level":"error","msg":"as logged"}' >"$4"; echo printed >&2; exit 1;; esac`,
	})
	d.start()
	d.empty = d.ledger()
	for handler, want := range map[string]string{"pods": "exit status 128: the sandbox is full", "crashes": "panic: nil map", "logged": "as logged"} {
		if _, err := d.inHandler(handler); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", handler, err)
		}
	}
	p, err := d.inHandler("containers")
	if err != nil {
		t.Fatal(err)
	}
	for what, option := range map[string]containerOption{
		"plain": with(func(*cri.ContainerConfig) {}), "at a terminal": with(func(c *cri.ContainerConfig) { c.Tty = true }),
	} {
		c := p.create(idle(), option)
		if err := c.tryStart(); err == nil || !strings.Contains(err.Error(), "the kernel is too old") {
			t.Errorf("%s: %v", what, err)
		}
		if st := c.status(); !strings.Contains(st.Message, "the kernel is too old") {
			t.Errorf("%s: message %q", what, st.Message)
		}
		c.remove()
	}
}
