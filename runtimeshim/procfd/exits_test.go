package procfd

import (
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestExits: how processes end is heard although they were reaped by somebody else, of many threads too.
func TestExits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	var exits Exits
	for script, want := range map[string]int32{"read x; exit 7": 7, "read x; kill -9 $$": 128 + 9, "read x": 1} {
		cmd := exec.Command("/bin/sh", "-c", script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		x, err := exits.Follow(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		in.Close()
		_ = cmd.Wait() // reaps it
		if ws, ok := x.Status(); !ok || ExitCode(ws) != want {
			t.Errorf("%s: got %d, %v; want %d", script, ExitCode(ws), ok, want)
		}
		x.Forget()
		x.Forget()
	}
	if exits.socket != nil {
		t.Error("it listens although nobody is followed")
	}
}

// TestExitsOfThreads: the status of a program whose first thread ends before the others is that of the last.
func TestExitsOfThreads(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestExitsOfThreads$")
	cmd.Env = append(os.Environ(), "CRIBOX_TEST_THREADS=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var exits Exits
	x, err := exits.Follow(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Forget()
	in.Close()
	_ = cmd.Wait()
	if ws, ok := x.Status(); !ok || ExitCode(ws) != 5 {
		t.Errorf("got %d, %v", ExitCode(ws), ok)
	}
}

// init is what the program of TestExitsOfThreads does: its first thread ends, which runs init, and then another one ends the process.
func init() {
	if os.Getenv("CRIBOX_TEST_THREADS") != "1" {
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	go func() {
		for {
			if st, err := ReadStat(os.Getpid()); err != nil || st.State == 'Z' {
				os.Exit(5)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

// TestExitsAfterExec: when another thread than the first executes a program, the first one's end is not that of the process.
func TestExitsAfterExec(t *testing.T) {
	var exits Exits
	x := &Exit{all: &exits, pid: 100, first: make(chan struct{})}
	exits.of = map[int]*Exit{100: x}
	tell := func(what, thread, code uint32) {
		message := make([]byte, messageSize)
		for at, n := range map[int]uint32{whatAt: what, threadAt: thread, processAt: 100, codeAt: code} {
			binary.NativeEndian.PutUint32(message[at:], n)
		}
		exits.heard(message)
	}
	tell(eventExit, 100, 0)
	tell(eventExec, 100, 0)
	select {
	case <-x.first:
		t.Error("its end was told before it has ended")
	default:
	}
	tell(eventExit, 101, 0)
	tell(eventExit, 100, 5<<8)
	if ws, ok := x.Status(); !ok || ExitCode(ws) != 5 {
		t.Errorf("got %d, %v", ExitCode(ws), ok)
	}
}

// TestExitsOfMany: more processes than a filter has room for.
func TestExitsOfMany(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	var exits Exits
	var others []*Exit
	for i := range maxFollowed {
		x, err := exits.Follow(1<<22 + i) // no process has such a number
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, x)
	}
	cmd := exec.Command("/bin/sh", "-c", "read x; exit 3")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	x, err := exits.Follow(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	_ = cmd.Wait()
	if ws, ok := x.Status(); !ok || ExitCode(ws) != 3 {
		t.Errorf("got %d, %v", ExitCode(ws), ok)
	}
	for _, x := range append(others, x) {
		x.Forget()
	}
	if exits.socket != nil {
		t.Error("it listens although nobody is followed")
	}
}
