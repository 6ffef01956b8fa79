package runtimeshim

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLoggerOfAnotherBuildIsReplaced: a daemon that was upgraded finds the logger of the one before. What runs prints on, and no line is lost.
func TestLoggerOfAnotherBuildIsReplaced(t *testing.T) {
	must(t, os.Setenv("CRIBOX_TEST_BUILD", "older"))
	t.Cleanup(func() { os.Unsetenv("CRIBOX_TEST_BUILD") })
	h := newHost(t)
	task := h.startCounter("c", "")
	before := h.lockPid("logger.lock")
	shim := h.lockPid("shim.lock")
	h.client.Close()
	must(t, os.Unsetenv("CRIBOX_TEST_BUILD"))
	h.connect()
	after := h.lockPid("logger.lock")
	if after == before {
		t.Error("the logger of another build is still there")
	}
	if h.lockPid("shim.lock") != shim {
		t.Error("the shim was replaced")
	}
	h.client.Close()
	h.connect()
	if now := h.lockPid("logger.lock"); now != after {
		t.Error("a logger of the same build was replaced")
	}
	h.finishCounter(task)
	h.wantExit("c", 7)
	h.wantCounted("c", 2000)
}

// TestWireFormatIsAgreed: a daemon asks in the newest format that both know, and for the version in the first.
func TestWireFormatIsAgreed(t *testing.T) {
	for _, row := range []struct{ theirs, ours, want int }{{1, 1, 1}, {1, 2, 1}, {2, 1, 1}, {3, 2, 2}, {0, 1, 1}} {
		if got := lowerFormat(row.theirs, row.ours); got != row.want {
			t.Errorf("of %d and %d it speaks %d, want %d", row.theirs, row.ours, got, row.want)
		}
	}
	dir, err := os.MkdirTemp("", "crb")
	must(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	defer l.Close()
	asked := make(chan request, 2)
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			var r request
			if _, err := readFrame(conn, &r); err == nil {
				asked <- r
				_ = writeFrame(conn, reply{Body: asJSON(t, versionReply{Format: 99, Pid: unix.Getpid()})}, nil)
			}
			conn.Close()
		}
	}()
	p := newPeer("shim", Config{}, path, "", "", "")
	pidfd, v, err := p.greet(context.Background())
	must(t, err)
	pidfd.Close()
	p.heard(v)
	if _, err := p.call(context.Background(), "tasks", struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	if r := <-asked; r.Verb != "version" || r.Format != 1 {
		t.Errorf("asked first: %+v", r)
	}
	if r := <-asked; r.Verb != "tasks" || r.Format != wireFormat {
		t.Errorf("asked then: %+v", r)
	}
}

// TestBuildOf: a Go program has the id that its linker gave it, whatever it is called; another file is known by what it is.
func TestBuildOf(t *testing.T) {
	me := buildOf("/proc/self/exe")
	if me == "" || buildOf("/proc/self/exe") != me {
		t.Errorf("build %q", me)
	}
	copied, script := filepath.Join(t.TempDir(), "copy"), filepath.Join(t.TempDir(), "script")
	raw, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(copied, raw[:1<<20], 0o600))
	if got := buildOf(copied); got != me {
		t.Errorf("a copy has build %q, want %q", got, me)
	}
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600))
	if got := buildOf(script); got == "" || got == me {
		t.Errorf("a script has build %q", got)
	}
	if got := buildOf(script + "x"); got != "" {
		t.Errorf("no file has build %q", got)
	}
}
