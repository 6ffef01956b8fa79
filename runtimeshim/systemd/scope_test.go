package systemd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
)

// fakeManager is a service manager on a bus of its own. What it does with a request is up to the test.
type fakeManager struct {
	bus  *exec.Cmd
	conn *dbus.Conn
	mu   sync.Mutex // a connection is not seen by the race detector
	jobs uint32
	do   func(method, unit string, asked map[string]dbus.Variant) (result string, refuse *dbus.Error)
}

// whenAsked says what the manager does.
func (m *fakeManager) whenAsked(do func(method, unit string, asked map[string]dbus.Variant) (string, *dbus.Error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.do = do
}

func newManager(t *testing.T) *fakeManager {
	t.Helper()
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `<busconfig><listen>%s</listen><auth>EXTERNAL</auth><policy context="default">
		<allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`, address), 0o600))
	m := &fakeManager{bus: exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--print-address")}
	out, err := m.bus.StdoutPipe()
	must(t, err)
	if err := m.bus.Start(); errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs dbus-daemon")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.endBus)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	m.conn, err = dbus.Connect(address)
	must(t, err)
	t.Cleanup(func() { m.conn.Close() })
	must(t, m.conn.Export(m, path, manager))
	_, err = m.conn.RequestName(busName, 0)
	must(t, err)
	was, private := busAddress, privateAddress
	busAddress, privateAddress = address, "unix:path="+filepath.Join(dir, "private")
	t.Cleanup(func() { busAddress, privateAddress = was, private })
	return m
}

func (m *fakeManager) endBus() {
	_ = m.bus.Process.Kill()
	_ = m.bus.Wait()
}

// StartTransientUnit and StopUnit are called over the bus.
func (m *fakeManager) StartTransientUnit(unit, mode string, all []property, _ []auxiliary) (dbus.ObjectPath, *dbus.Error) {
	asked := map[string]dbus.Variant{"mode": dbus.MakeVariant(mode)}
	for _, p := range all {
		asked[p.Name] = p.Value
	}
	return m.job("start", unit, asked)
}

func (m *fakeManager) StopUnit(unit, mode string) (dbus.ObjectPath, *dbus.Error) {
	return m.job("stop", unit, map[string]dbus.Variant{"mode": dbus.MakeVariant(mode)})
}

// job tells the end of another job of the unit first, and of the same job number for others.
func (m *fakeManager) job(method, unit string, asked map[string]dbus.Variant) (dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.jobs += 2
	job := func(n uint32) dbus.ObjectPath { return path + dbus.ObjectPath(fmt.Sprintf("/job/%d", n)) }
	result, refuse := m.do(method, unit, asked)
	if refuse != nil {
		return "/", refuse
	}
	if result != "" {
		for n, text := range map[uint32]string{m.jobs - 1: "failed", m.jobs: result} {
			_ = m.conn.Emit(path, manager+".JobRemoved", n, job(n), unit, text) // the bus may be gone
		}
	}
	return job(m.jobs), nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var aScope = Scope{Unit: "cribox-a.scope", Slice: "pods.slice", Description: "libcontainer container a", CPUWeight: 1,
	Devices: []Device{{"char-136", "rwm"}, {"/dev/char/1:3", "rwm"}}}

// TestStart: systemd is told all that runc tells it.
func TestStart(t *testing.T) {
	m := newManager(t)
	var got map[string]dbus.Variant
	m.whenAsked(func(method, unit string, asked map[string]dbus.Variant) (string, *dbus.Error) {
		if method != "start" || unit != aScope.Unit {
			t.Errorf("got %s of %s", method, unit)
		}
		got = asked
		return "done", nil
	})
	must(t, Start(t.Context(), aScope, 4711))
	m.mu.Lock()
	defer m.mu.Unlock()
	want := map[string]string{"mode": `"replace"`, "Description": `"libcontainer container a"`, "Slice": `"pods.slice"`, "Delegate": "true",
		"PIDs": "@au [4711]", "MemoryAccounting": "true", "CPUAccounting": "true", "IOAccounting": "true", "TasksAccounting": "true",
		"DefaultDependencies": "false", "DevicePolicy": `"strict"`, "CPUWeight": "@t 1", "CollectMode": `"inactive-or-failed"`}
	for name, value := range want {
		if got[name].String() != value {
			t.Errorf("%s is %s, want %s", name, got[name], value)
		}
	}
	var devices []Device
	must(t, got["DeviceAllow"].Store(&devices))
	if !reflect.DeepEqual(devices, aScope.Devices) || len(got) != len(want)+1 {
		t.Errorf("devices are %v; %d properties in all", devices, len(got))
	}
}

// TestFailures: what systemd says comes back, and nobody waits for ever.
func TestFailures(t *testing.T) {
	refusal := func(name string) *dbus.Error { return dbus.NewError(busName+"."+name, []any{name}) }
	for what, row := range map[string]struct {
		result  string
		refuse  *dbus.Error
		before  func(*fakeManager, context.CancelFunc)
		want    string
		stopped string // what Stop says, if it differs
	}{
		"the job fails":        {result: "failed", want: `its job ended with "failed"`},
		"it refuses":           {refuse: refusal("UnitExists"), want: "UnitExists"},
		"there is none":        {refuse: refusal("NoSuchUnit"), want: "NoSuchUnit", stopped: "nil"},
		"the job has no end":   {before: func(_ *fakeManager, cancel context.CancelFunc) { cancel() }, want: context.Canceled.Error()},
		"the bus ends":         {before: func(m *fakeManager, _ context.CancelFunc) { _ = m.bus.Process.Kill() }, want: "systemd"},
		"nothing goes wrong":   {result: "done", want: "nil"},
		"the manager is gone":  {before: func(m *fakeManager, _ context.CancelFunc) { m.conn.Close() }, want: "systemd"},
		"another one's result": {result: "skipped", want: `"skipped"`},
	} {
		t.Run(what, func(t *testing.T) {
			for _, method := range []string{"start", "stop"} {
				m := newManager(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				m.whenAsked(func(string, string, map[string]dbus.Variant) (string, *dbus.Error) {
					if row.before != nil {
						row.before(m, cancel)
					}
					return row.result, row.refuse
				})
				call, want := func() error { return Start(ctx, aScope, 1) }, row.want
				if method == "stop" {
					call = func() error { return Stop(ctx, aScope.Unit) }
					if row.stopped != "" {
						want = row.stopped
					}
				}
				if err := call(); want == "nil" && err != nil || want != "nil" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s: got %v, want %s", method, err, want)
				}
			}
		})
	}
}

// TestSilentBus: whoever accepts a connection and says nothing is not waited for longer than the caller wants.
func TestSilentBus(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", socket)
	must(t, err)
	defer l.Close()
	was, private := busAddress, privateAddress
	busAddress, privateAddress = "unix:path="+socket, "unix:path="+socket+"-private"
	t.Cleanup(func() { busAddress, privateAddress = was, private })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, _ = conn.Read(make([]byte, 1)) // it wants to log in
		}
		cancel()
	}()
	if err := Stop(ctx, "x.scope"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	m := newManager(t)
	m.endBus()
	if err := Stop(t.Context(), "x.scope"); err == nil || !strings.Contains(err.Error(), "private") {
		t.Errorf("got %v", err)
	}
}

// TestRealScope starts and stops a scope where systemd runs, over its bus and over its own socket.
func TestRealScope(t *testing.T) {
	if !Runs() || os.Geteuid() != 0 {
		t.Skip("needs systemd, and root")
	}
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", "criboxtest.slice").Run() })
	for _, address := range []string{busAddress, "unix:path=/nowhere"} {
		was := busAddress
		busAddress = address
		t.Cleanup(func() { busAddress = was })
		sleep := exec.Command("sleep", "1000000")
		must(t, sleep.Start())
		scope := aScope
		scope.Unit, scope.Slice = fmt.Sprintf("cribox-test-%d.scope", sleep.Process.Pid), "criboxtest.slice"
		must(t, Start(t.Context(), scope, sleep.Process.Pid))
		in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", sleep.Process.Pid))
		must(t, err)
		if !strings.Contains(string(in), "/criboxtest.slice/"+scope.Unit+"\n") {
			t.Errorf("it is in %s", in)
		}
		must(t, Stop(t.Context(), scope.Unit))
		_ = sleep.Wait()
		must(t, Stop(t.Context(), scope.Unit))
		if out, err := exec.Command("systemctl", "show", "-P", "LoadState", scope.Unit).CombinedOutput(); string(out) != "not-found\n" {
			t.Errorf("it is %s (%v)", out, err)
		}
	}
}
