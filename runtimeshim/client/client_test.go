package client

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

func TestMountLabel(t *testing.T) {
	for spec, want := range map[string]string{
		`{"linux":{"mountLabel":"system_u:object_r:container_file_t:s0:c1,c2"}}`: "system_u:object_r:container_file_t:s0:c1,c2",
		`{"linux":{}}`: "",
		`{"process":{"args":["\"mountLabel\""]},"linux":{"mountLabel":""}}`: "",
		`{"annotations":{"mountLabel":"x"},"linux":{}}`:                     "",
	} {
		if got, err := mountLabel([]byte(spec)); err != nil || got != want {
			t.Errorf("%s: %q, %v", spec, got, err)
		}
	}
	if _, err := mountLabel([]byte(`{"linux":{"mountLabel":1}}`)); err == nil {
		t.Error("a label that is a number is taken")
	}
}

// TestNamespacesAreTheTasks: a process that has reused a task's pid is not taken for the task.
func TestNamespacesAreTheTasks(t *testing.T) {
	st, err := procfd.ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	rec := statedir.Record{State: runtimeshim.StateRunning, Pid: os.Getpid(), StartTicks: st.StartTicks}
	files, err := openNamespaces(rec, []string{"pid", "ipc"})
	if err != nil || len(files) != 2 {
		t.Fatalf("of the process itself: %v, %v", files, err)
	}
	unixfd.CloseAll(files)
	for name, other := range map[string]func(*statedir.Record){
		"another start time": func(r *statedir.Record) { r.StartTicks-- },
		"no process":         func(r *statedir.Record) { r.Pid = 0 },
		"the first process":  func(r *statedir.Record) { r.Pid = 1 },
		"not running":        func(r *statedir.Record) { r.State = runtimeshim.StateStarting },
	} {
		wrong := rec
		other(&wrong)
		if files, err := openNamespaces(wrong, []string{"pid"}); !errors.Is(err, unix.ESRCH) || len(files) > 0 {
			t.Errorf("%s: %v, %v", name, files, err)
		}
	}
}

// TestPanicCostsOneTry: starting and watching a peer is retried after a panic.
func TestPanicCostsOneTry(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	c := Config{State: dir, Step: func(string) {
		if tries++; tries == 2 {
			cancel()
		}
		panic("oh")
	}}
	p := newPeer("shim", c, filepath.Join(dir, "sock"), filepath.Join(dir, "lock"), dir, filepath.Join(dir, "log"))
	p.keep(ctx, nil)
	if tries != 2 {
		t.Errorf("%d tries", tries)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	(&Client{ctx: ctx}).watch() // without a shim to watch: it panics until ctx ends
}

// TestLoggerOfAnotherBuildIsReplaced: an upgraded daemon replaces the old logger. Tasks keep
// printing, and no line is lost.
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

// TestWireFormatIsAgreed: a daemon sends requests in the newest format that both peers know, and
// asks for the version in format 1.
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
	type request struct {
		Format int
		Verb   string
	}
	asked := make(chan request, 2)
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			var head [4]byte
			_, err = io.ReadFull(conn, head[:])
			raw := make([]byte, binary.BigEndian.Uint32(head[:]))
			if err == nil {
				_, err = io.ReadFull(conn, raw)
			}
			var r request
			if err == nil && json.Unmarshal(raw, &r) == nil {
				asked <- r
				raw = fmt.Appendf(nil, `{"body":{"format":99,"pid":%d}}`, unix.Getpid())
				_, _ = conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...))
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
	if r := <-asked; r.Verb != "tasks" || r.Format != wire.Format {
		t.Errorf("asked then: %+v", r)
	}
}
