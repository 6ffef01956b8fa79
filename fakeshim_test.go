package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
)

// fakeShim replaces the shim and the logger of a daemon in this process. It uses their protocol
// (package wire) on their sockets and holds their locks, so that the daemon connects to it and
// starts neither. Its tasks are sleeping processes in the cgroups of the spec. It runs no OCI
// runtime, and discards the output of tasks.
type fakeShim struct {
	state string
	roots []string // folders in which a task has a cgroup

	mu       sync.Mutex // guards the fields below
	tasks    map[string]*fakeTask
	watchers map[chan runtimeshim.Task]bool
	asked    []string   // verbs and task IDs, since takeAsked was called last
	more     *sync.Cond // of asked
}

type fakeTask struct {
	runtimeshim.Task
	cgroup  string
	process *exec.Cmd
	ended   chan struct{}
}

// newFakeShim serves the state folder until the test ends.
func newFakeShim(t testing.TB, state string, roots []string) *fakeShim {
	s := &fakeShim{state: state, roots: roots, tasks: map[string]*fakeTask{}, watchers: map[chan runtimeshim.Task]bool{}}
	s.more = sync.NewCond(&s.mu)
	tasks := filepath.Join(state, "shim")
	must(t, os.MkdirAll(tasks, 0o700))
	for name, folder := range map[string]string{"shim": state, "logger": tasks} {
		s.hold(t, filepath.Join(state, name+".lock"))
		s.hold(t, folder)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(state, name+".sock")})
		must(t, err)
		go s.serve(l)
		t.Cleanup(func() { l.Close() })
	}
	t.Cleanup(s.removeAll)
	return s
}

func (s *fakeShim) hold(t testing.TB, path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EISDIR) {
		f, err = os.Open(path)
	}
	must(t, err)
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	t.Cleanup(func() { f.Close() })
}

// removeAll removes the tasks that a failed test has left.
func (s *fakeShim) removeAll() {
	s.mu.Lock()
	all := make([]string, 0, len(s.tasks))
	for id := range s.tasks {
		all = append(all, id)
	}
	s.mu.Unlock()
	for _, id := range all {
		s.remove(id)
	}
}

func (s *fakeShim) serve(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			s.answer(conn)
		}()
	}
}

// answer handles the one call of a connection.
func (s *fakeShim) answer(conn net.Conn) {
	var req struct {
		Verb string
		Body struct{ ID, Pod string }
	}
	if readFrame(conn, &req) != nil {
		return
	}
	id := req.Body.ID
	if req.Verb != "finish" { // for which an exit is a second reason, at any time
		s.mu.Lock()
		s.asked = append(s.asked, strings.TrimSpace(req.Verb+" "+id))
		s.more.Broadcast()
		s.mu.Unlock()
	}
	switch req.Verb {
	case "version":
		writeFrame(conn, reply(map[string]int{"format": 1, "pid": os.Getpid()}))
	case "task":
		if t := s.find(id); t != nil {
			writeFrame(conn, reply(t.Task))
			return
		}
		writeFrame(conn, map[string]any{"error": map[string]string{"class": "not_found", "message": "no task " + id}})
	case "tasks":
		writeFrame(conn, reply(s.list()))
	case "start":
		task, err := s.start(id, req.Body.Pod)
		if err != nil {
			writeFrame(conn, map[string]any{"error": map[string]string{"class": "unknown", "message": err.Error()}})
			return
		}
		writeFrame(conn, reply(task))
	case "watch":
		s.watch(conn)
	case "exec": // of a command that prints nothing
		writeFrame(conn, reply(map[string]int{"pid": 1}))
		writeFrame(conn, reply(map[string]int{"code": 0}))
	case "kill", "end":
		s.kill(id)
		writeFrame(conn, reply(nil))
	case "release", "delete":
		s.remove(id)
		writeFrame(conn, reply(nil))
	case "open", "finish": // calls of the logger
		writeFrame(conn, reply(nil))
	default:
		writeFrame(conn, map[string]any{"error": map[string]string{"class": "not_implemented", "message": "no verb " + req.Verb}})
	}
}

// awaitAsked returns when the call has been asked for.
func (s *fakeShim) awaitAsked(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !slices.Contains(s.asked, call) {
		s.more.Wait()
	}
}

// takeAsked returns what the shim and the logger were asked since the last call, in sorted order.
func (s *fakeShim) takeAsked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.asked
	s.asked = nil
	slices.Sort(all)
	return all
}

func (s *fakeShim) list() []runtimeshim.Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []runtimeshim.Task{}
	for _, t := range s.tasks {
		all = append(all, t.Task)
	}
	return all
}

// start reads the cgroups from the spec, creates them, and starts a process in them.
func (s *fakeShim) start(id, pod string) (runtimeshim.Task, error) {
	raw, err := os.ReadFile(filepath.Join(s.state, "shim", id, "bundle", "config.json"))
	if err != nil {
		return runtimeshim.Task{}, err
	}
	var spec struct{ Linux struct{ CgroupsPath string } }
	if err := json.Unmarshal(raw, &spec); err != nil {
		return runtimeshim.Task{}, err
	}
	t := &fakeTask{cgroup: runtimeshim.CgroupOf(spec.Linux.CgroupsPath), process: exec.Command("sleep", "infinity"), ended: make(chan struct{})}
	if err := t.process.Start(); err != nil {
		return runtimeshim.Task{}, err
	}
	t.Task = runtimeshim.Task{ID: id, Pod: pod, Pid: t.process.Process.Pid, StartedAt: time.Now(), State: "running"}
	if err := s.record(t.Task); err != nil {
		return runtimeshim.Task{}, err
	}
	s.mu.Lock()
	s.tasks[id] = t
	s.mu.Unlock()
	go s.await(t)
	for _, root := range s.roots {
		dir := filepath.Join(root, t.cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return runtimeshim.Task{}, err
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(t.Pid)), 0); err != nil {
			return runtimeshim.Task{}, err
		}
	}
	return t.Task, nil
}

// record writes task.json, by which the daemon opens the namespaces of a task.
func (s *fakeShim) record(t runtimeshim.Task) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.Pid))
	if err != nil {
		return err
	}
	const started = 22 - 3 // field of proc_pid_stat(5), after the name in parentheses and one more
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ticks, err := strconv.ParseUint(fields[started], 10, 64)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]any{"format": 1, "id": t.ID, "pod": t.Pod, "state": t.State, "pid": t.Pid, "start_ticks": ticks})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.state, "shim", t.ID, "task.json"), raw, 0o600)
}

// await waits for the exit of a task, and sends it to all watchers.
func (s *fakeShim) await(t *fakeTask) {
	_ = t.process.Wait() // always killed by a signal
	s.mu.Lock()
	t.State, t.Exit = "exited", &runtimeshim.Exit{Code: 128 + int32(syscall.SIGKILL), Known: true, At: time.Now()}
	for w := range s.watchers {
		w <- t.Task
	}
	s.mu.Unlock()
	close(t.ended)
}

func (s *fakeShim) find(id string) *fakeTask {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[id]
}

func (s *fakeShim) kill(id string) {
	if t := s.find(id); t != nil {
		_ = t.process.Process.Kill()
		<-t.ended
	}
}

func (s *fakeShim) remove(id string) {
	s.kill(id)
	if t := s.find(id); t != nil {
		for _, root := range s.roots {
			_ = os.Remove(filepath.Join(root, t.cgroup)) // if this fails, the removal of its parent reports it
		}
	}
	s.mu.Lock()
	delete(s.tasks, id)
	s.mu.Unlock()
	_ = os.RemoveAll(filepath.Join(s.state, "shim", id))
}

// watch sends all tasks, and then each exit, until the caller disconnects.
func (s *fakeShim) watch(conn net.Conn) {
	exits := make(chan runtimeshim.Task, 1024) // larger than the number of tasks
	s.mu.Lock()
	s.watchers[exits] = true
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		_, _ = conn.Read(make([]byte, 1))
		close(gone)
	}()
	told := s.list()
	for {
		writeFrame(conn, map[string]any{"more": true, "body": map[string]any{"tasks": told}})
		select {
		case t := <-exits:
			told = []runtimeshim.Task{t}
		case <-gone:
			s.mu.Lock()
			delete(s.watchers, exits)
			s.mu.Unlock()
			return
		}
	}
}

func reply(body any) map[string]any { return map[string]any{"body": body} }

// A frame is a length of 4 bytes, big endian, and that many bytes of JSON.

func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	return json.NewDecoder(io.LimitReader(r, int64(binary.BigEndian.Uint32(head[:])))).Decode(v)
}

func writeFrame(w io.Writer, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...)) // an error means that the caller has disconnected
}
