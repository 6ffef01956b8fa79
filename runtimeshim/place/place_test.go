package place

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

func ptr[T any](v T) *T { return &v }

// aSpec is what the pause process of a pod has.
func aSpec() *specs.Spec {
	return &specs.Spec{
		Version: "1.1.0", Hostname: "web-0",
		Process: &specs.Process{Args: []string{"/busybox", "sleep", "1000000"}, Cwd: "/", Env: []string{"PATH=/", "HOME=/"},
			User: specs.User{UID: 65535, GID: 65535, AdditionalGids: []uint32{65535}}, Capabilities: &specs.LinuxCapabilities{},
			NoNewPrivileges: true, OOMScoreAdj: ptr(100), Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 1000}}},
		Root: &specs.Root{Path: "/run/cribox/pause", Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		},
		Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox"},
		Linux: &specs.Linux{
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(2))}},
			CgroupsPath: "/kubepods/pod1/c1",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.IPCNamespace}, {Type: specs.PIDNamespace}},
		},
	}
}

// TestUnable: every part of a spec that this package does not do is a reason to leave it to the runtime.
func TestUnable(t *testing.T) {
	net := specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/x"}
	for _, row := range []struct {
		why    string // "": it can
		change func(*specs.Spec)
	}{
		{"", func(*specs.Spec) {}},
		{"", func(s *specs.Spec) { s.Process.OOMScoreAdj, s.Hostname, s.Process.Rlimits = nil, "", nil }},
		{"", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, net, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/u"})
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4", "fs.mqueue.msg_max": "5"}
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		}},
		{"missing", func(s *specs.Spec) { s.Process.Capabilities = nil }},
		{"missing", func(s *specs.Spec) { s.Linux = nil }},
		{"Bounding", func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_KILL"} }},
		{"Ambient", func(s *specs.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_KILL"} }},
		{"noNewPrivileges", func(s *specs.Spec) { s.Process.NoNewPrivileges = false }},
		{"Terminal", func(s *specs.Spec) { s.Process.Terminal = true }},
		{"", func(s *specs.Spec) {
			s.Process.ApparmorProfile, s.Linux.CgroupsPath = "unconfined", "a-b.slice:cribox:c"
		}},
		{"apparmorProfile", func(s *specs.Spec) { s.Process.ApparmorProfile = strings.Repeat("x", 512) }},
		{"SelinuxLabel", func(s *specs.Spec) { s.Process.SelinuxLabel = "x" }},
		{"MountLabel", func(s *specs.Spec) { s.Linux.MountLabel = "x" }},
		{"Umask", func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0)) }},
		{"IOPriority", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Priority: 1} }},
		{"Scheduler", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Nice: 1} }},
		{"cwd", func(s *specs.Spec) { s.Process.Cwd = "/proc" }},
		{"process.args", func(s *specs.Spec) { s.Process.Args = []string{"pause"} }},
		{"process.env", func(s *specs.Spec) { s.Process.Env = []string{"PATH=/"} }},
		{"process.env", func(s *specs.Spec) { s.Process.Env = []string{"HOME=/", "HOME=/x"} }},
		{"too long", func(s *specs.Spec) { s.Process.Args = append(s.Process.Args, strings.Repeat("x", 1024)) }},
		{"rlimits", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_FSIZE", Soft: 1, Hard: 1}}
		}},
		{"rlimits", func(s *specs.Spec) { s.Process.Rlimits = append(s.Process.Rlimits, s.Process.Rlimits[0]) }},
		{"root.readonly", func(s *specs.Spec) { s.Root.Readonly = false }},
		{"root.path", func(s *specs.Spec) { s.Root.Path = "rootfs" }},
		{"Hooks", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/x"}}} }},
		{"Domainname", func(s *specs.Spec) { s.Domainname = "x" }},
		{"hostname", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:1] }},
		{"no mount namespace", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] }},
		{"linux.namespaces: time", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
		}},
		{"linux.namespaces: network", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		}},
		{"linux.namespaces: pid", func(s *specs.Spec) { s.Linux.Namespaces[3].Path = "/proc/1/ns/pid" }},
		{"mounts", func(s *specs.Spec) { s.Mounts = append(s.Mounts, s.Mounts[1]) }},
		{"mounts", func(s *specs.Spec) { s.Mounts[1].Type = "bind" }},
		{`option "exec"`, func(s *specs.Spec) { s.Mounts[1].Options = []string{"exec"} }},
		{`option "ro"`, func(s *specs.Spec) { s.Mounts[1].Options = []string{"ro"} }},
		{"UIDMappings", func(s *specs.Spec) { s.Mounts[1].UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }},
		{"UIDMappings", func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }},
		{"net.ipv4.ip_forward", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"} }}, // the host's
		{"kernel.sem", func(s *specs.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[:2]
			s.Linux.Sysctl = map[string]string{"kernel.sem": "1"}
		}},
		{"kernel.panic", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} }},
		{"net/../x", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, net)
			s.Linux.Sysctl = map[string]string{"net.a/../x": "1"}
		}},
		{"net...x", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, net)
			s.Linux.Sysctl = map[string]string{"net...x": "1"}
		}},
		{"CPU.Quota", func(s *specs.Spec) { s.Linux.Resources.CPU.Quota = ptr(int64(1)) }},
		{"Memory", func(s *specs.Spec) { s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(1))} }},
		{"Unified", func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"a": "b"} }},
		{"devices", func(s *specs.Spec) { s.Linux.Resources.Devices[0].Allow = true }},
		{"devices", func(s *specs.Spec) { s.Linux.Resources.Devices = nil }},
		{"cgroupsPath", func(s *specs.Spec) { s.Linux.CgroupsPath = "a.slice:b" }},
		{"cgroupsPath", func(s *specs.Spec) { s.Linux.CgroupsPath = "a--b.slice:b:c" }},
		{"cgroupsPath", func(s *specs.Spec) { s.Linux.CgroupsPath = "/" }},
		{"cgroupsPath", func(s *specs.Spec) { s.Linux.CgroupsPath = "/../x" }},
		{"Devices", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse"}} }},
		{"MaskedPaths", func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/proc/x"} }},
		{"ReadonlyPaths", func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/proc/x"} }},
		{"RootfsPropagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "shared" }},
		{"Personality", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "LINUX32"} }},
		{"seccomp.flags", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{Flags: []specs.LinuxSeccompFlag{}} }},
		{"listener", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{Syscalls: []specs.LinuxSyscall{{Action: specs.ActNotify}}}
		}},
	} {
		s := aSpec()
		row.change(s)
		if got := Unable(s); (got == "") != (row.why == "") || !strings.Contains(got, strings.ReplaceAll(row.why, "net/", "net.a/")) {
			t.Errorf("want %q, got %q", row.why, got)
		}
	}
	if _, err := Parse([]byte(`{"ociVersion": "1.1.0", "linux": {"newField": true}}`)); err == nil {
		t.Error("an unknown field was not seen")
	}
}

// TestStepNames: the program and this package count the same steps.
func TestStepNames(t *testing.T) {
	source, err := os.ReadFile("place.c")
	if err != nil {
		t.Fatal(err)
	}
	enum := regexp.MustCompile(`(?s)enum step \{.*?\};`).FindString(string(source))
	if n := strings.Count(enum, "STEP_"); n != len(stepNames) {
		t.Errorf("place.c has %d steps, there are %d names", n, len(stepNames))
	}
}

// TestBytesMatchSource rebuilds and compares, where the compiler is the one the committed bytes come from.
func TestBytesMatchSource(t *testing.T) {
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("needs a C compiler")
	}
	out, err := exec.Command("./build.sh", "--check").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// lab starts processes in cgroups of its own.
type lab struct {
	*testing.T
	dir, parent string
	out         *os.File
	n           int
	filter      *Filter
	prepared    func(*Job) // called before a job is executed
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if why := UnableHere(aSpec()); why != "" {
		t.Skip(why)
	}
	l := &lab{T: t, dir: t.TempDir(), parent: fmt.Sprintf("/cribox-place-%d", os.Getpid())}
	for dir := l.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		l.must(os.Chmod(dir, 0o755)) // another user executes the program
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no static /bin/busybox")
	}
	root := filepath.Join(l.dir, "root")
	for _, name := range []string{"proc", "dev"} {
		l.must(os.MkdirAll(filepath.Join(root, name), 0o755))
	}
	l.must(os.WriteFile(filepath.Join(root, "busybox"), busybox, 0o755))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context()) // which has ended by now
		for _, h := range cgroup.Mounts() {
			if err := cgroup.Remove(ctx, []string{filepath.Join(h.Mount, l.parent)}); err != nil {
				t.Error(err)
			}
			_ = cgroup.RemoveEmpty(filepath.Join(h.Mount, l.parent))
		}
	})
	return l
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// start executes a job for a spec, through a program of words that end in "--" and are followed by the job's own; it returns the pid.
func (l *lab) start(change func(*specs.Spec), through ...string) (int, error) {
	l.Helper()
	s := aSpec()
	l.n++
	s.Root.Path, s.Linux.CgroupsPath = filepath.Join(l.dir, "root"), fmt.Sprintf("%s/c%d", l.parent, l.n)
	if l.filter != nil {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	}
	if change != nil {
		change(s)
	}
	if why := Unable(s); why != "" {
		l.Fatalf("the spec cannot be placed: %s", why)
	}
	pidFile := filepath.Join(l.dir, fmt.Sprintf("pid%d", l.n))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	l.must(err)
	defer null.Close()
	out := null
	if l.out != nil {
		out = l.out
	}
	job, err := Prepare(Start{ID: fmt.Sprintf("place-test-%d", l.n), Spec: s, Stdio: [3]*os.File{null, out, out}, Keeper: null, Lock: null, PidFile: pidFile, Filter: l.filter})
	l.must(err)
	defer job.Close()
	if l.prepared != nil {
		l.prepared(job)
	}
	return l.run(job, pidFile, through...)
}

// copied returns a new copy of the program: its own file is for its own execution only, and an older copy may be in use.
func (l *lab) copied() string {
	l.Helper()
	dir, err := os.MkdirTemp(l.dir, "program-")
	l.must(err)
	file := filepath.Join(dir, "program")
	l.must(os.WriteFile(file, []byte(program), 0o755))
	return file
}

// run executes a job and returns the pid that it has written.
func (l *lab) run(job *Job, pidFile string, through ...string) (int, error) {
	l.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	l.must(err)
	defer null.Close()
	for i, f := range job.Files {
		if f == nil {
			job.Files[i] = null
		}
	}
	cmd := &exec.Cmd{Path: job.Argv[0], Args: []string{job.Argv[0]}, Stdin: job.Files[0], Stdout: job.Files[1], Stderr: job.Files[2], ExtraFiles: job.Files[3:]}
	if len(through) > 0 {
		copied := l.copied()
		cmd.Path, err = exec.LookPath(through[0])
		l.must(err)
		cmd.Args = append(through, copied)
	}
	if err := cmd.Run(); err != nil {
		if raw, _ := os.ReadFile(pidFile); len(raw) > 0 {
			l.Errorf("it failed, and the pid file has %q", raw)
		}
		return 0, job.Failure()
	}
	raw, err := os.ReadFile(pidFile)
	l.must(err)
	pid, err := strconv.Atoi(string(raw))
	l.must(err)
	l.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	})
	return pid, nil
}

// says returns what a shell script prints as the process, which belongs to this user.
func (l *lab) says(user uint32, script string, through ...string) string {
	l.Helper()
	r, w, err := os.Pipe()
	l.must(err)
	defer r.Close()
	l.out = w
	_, err = l.start(func(s *specs.Spec) {
		s.Process.Args, s.Process.User.UID = []string{"/busybox", "sh", "-c", script}, user
	}, through...)
	w.Close()
	l.out = nil
	l.must(err)
	said, err := io.ReadAll(r)
	l.must(err)
	return string(said)
}

// TestSEC80InsideAProcess: signals, descriptors and folder of a process are its own, whatever its parent has.
func TestSEC80InsideAProcess(t *testing.T) {
	l := newLab(t)
	extra, err := os.Open("/")
	l.must(err)
	defer extra.Close()
	const script = "/busybox grep -E 'Sig(Ign|Blk)|Cap|NoNew' /proc/self/status; /busybox ls /proc/self/fd | /busybox tr '\\n' ' '; /busybox pwd; /busybox ls /"
	through := []string{"/bin/bash", "-c", "trap '' HUP INT PIPE; exec 60</; exec \"$0\""}
	const zero = "\t0000000000000000\n"
	// 4 is the folder that ls reads.
	want := "SigBlk:" + zero + "SigIgn:" + zero + "CapInh:" + zero + "CapPrm:" + zero + "CapEff:" + zero + "CapBnd:" + zero + "CapAmb:" + zero +
		"NoNewPrivs:\t1\n0 1 2 3 4 /\nbusybox\ndev\nproc\n"
	for _, user := range []uint32{65535, 0} {
		if said := l.says(user, script, through...); said != want {
			t.Errorf("user %d sees\n%s\nwant\n%s", user, said, want)
		}
	}
}

// TestSEC80ProgramIsSealed: a process that is reached through /proc/PID/exe cannot be changed there.
func TestSEC80ProgramIsSealed(t *testing.T) {
	j := &Job{}
	if err := begin(j, nil); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", j.program.Fd()), unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err) // who has mapped it can open it
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("x")); !errors.Is(err, unix.EPERM) {
		t.Errorf("writing to the program: %v", err)
	}
}

// TestSEC80MountTargets: a folder of the root filesystem that is a link leads nowhere outside it.
func TestSEC80MountTargets(t *testing.T) {
	l := newLab(t)
	outside := filepath.Join(l.dir, "outside")
	l.must(os.Mkdir(outside, 0o755))
	dev := filepath.Join(l.dir, "root/dev")
	for _, to := range []string{outside, "../outside", "/proc/self/cwd"} {
		l.must(os.Remove(dev))
		l.must(os.Symlink(to, dev))
		if _, err := l.start(nil); err == nil || !strings.Contains(err.Error(), "mount /dev") {
			t.Errorf("with /dev -> %s: %v", to, err)
		}
	}
}

// TestSEC80FalseProc: what only looks like /proc is not written to.
func TestSEC80FalseProc(t *testing.T) {
	l := newLab(t)
	_, err := l.start(nil, "unshare", "-m", "/bin/sh", "-c", "mount -t tmpfs none /proc && mkdir /proc/self && : >/proc/self/oom_score_adj && exec \"$0\"")
	if !errors.Is(err, unix.EBADMSG) || !strings.Contains(err.Error(), "oom_score_adj") {
		t.Errorf("with a false /proc: %v", err)
	}
}

// TestWaitsForItsScope: a program whose cgroup systemd makes goes on when it is told to, and ends when nobody is left to tell it.
func TestWaitsForItsScope(t *testing.T) {
	l := newLab(t)
	scoped := func(s *specs.Spec) { s.Linux.CgroupsPath = "cribox-place.slice:test:c" }
	l.prepared = func(job *Job) {
		if job.Scope == nil || job.Scope.Unit != "test-c.scope" || job.Scope.Slice != "cribox-place.slice" {
			t.Errorf("the scope is %+v", job.Scope)
		}
		flags, err := unix.FcntlInt(uintptr(unixfd.Of(job.Files[len(job.Files)-1])), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("the program would not wait: %x, %v", flags, err)
		}
		_, err = job.admission.Write([]byte{1})
		l.must(err)
	}
	if pid, err := l.start(scoped); pid == 0 || err != nil {
		t.Errorf("admitted: %d, %v", pid, err)
	}
	l.prepared = func(job *Job) { l.must(job.admission.Close()) }
	if _, err := l.start(scoped); err == nil || !strings.Contains(err.Error(), "wait for the cgroup") {
		t.Errorf("alone: %v", err)
	}
}

// TestFailuresNameTheStep: an error says what was being done, and nothing of the process is left.
func TestFailuresNameTheStep(t *testing.T) {
	l := newLab(t)
	for want, change := range map[string]func(*specs.Spec){
		"bind the root filesystem: no such file or directory": func(s *specs.Spec) { s.Root.Path += "/nothing" },
		"set sysctl kernel.sem: invalid argument":             func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"fs.mqueue.msg_max": "9", "kernel.sem": "x"} },
		"execute: no such file or directory":                  func(s *specs.Spec) { s.Process.Args[0] = "/nothing" },
		"mount /dev: invalid argument":                        func(s *specs.Spec) { s.Mounts[1].Options = []string{"size=x"} },
		"set a resource limit RLIMIT_NOFILE: operation not permitted": func(s *specs.Spec) {
			s.Process.Rlimits[0].Hard = 1 << 62
		},
	} {
		_, err := l.start(change)
		if err == nil || err.Error() != want {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// take reads the filter of a process.
func (l *lab) take(pid int, through ...string) ([]uint64, error) {
	l.Helper()
	j, err := Take(pid, nil, nil)
	l.must(err)
	defer j.Close()
	cmd := &exec.Cmd{Path: j.Argv[0], Args: j.Argv, ExtraFiles: j.Files[3:]}
	if len(through) > 0 {
		copied := l.copied()
		cmd.Path, cmd.Args = through[0], append(through, copied)
	}
	null, err := os.Open(os.DevNull)
	l.must(err)
	defer null.Close()
	for i, f := range cmd.ExtraFiles {
		if f == nil {
			cmd.ExtraFiles[i] = null
		}
	}
	if err := cmd.Run(); err != nil {
		return nil, j.Failure()
	}
	return j.Found()
}

// allowing is a filter that allows everything; it returns SECCOMP_RET_ALLOW.
var allowing = &Filter{Code: []uint64{0x7fff0000_00000006}}

// TestTake: the filter that a process has is the one that was loaded; a process without one is an error.
func TestTake(t *testing.T) {
	l := newLab(t)
	bare, err := l.start(nil)
	l.must(err)
	if got, err := l.take(bare); err == nil || !strings.Contains(err.Error(), "read the seccomp filter") {
		t.Errorf("without a filter: %v, %v", got, err)
	}
	l.filter = allowing
	filtered, err := l.start(nil)
	l.must(err)
	if got, err := l.take(filtered); err != nil || !slices.Equal(got, allowing.Code) {
		t.Errorf("%x, %v", got, err)
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", filtered))
	l.must(err)
	if !bytes.Contains(raw, []byte("TracerPid:\t0\n")) {
		t.Errorf("it is still traced: %s", raw)
	}
}

// looking is another filter that allows everything.
var looking = &Filter{Code: []uint64{0x20, 0x7fff0000_00000006}} // it loads the number of the call first

const filteredEnv = "CRIBOX_PLACE_TEST_FILTERED"

// TestMain executes its arguments with the filter looking, if the environment says so.
func TestMain(m *testing.M) {
	if os.Getenv(filteredEnv) == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	program := unix.SockFprog{Len: uint16(len(looking.Code)), Filter: (*unix.SockFilter)(unsafe.Pointer(&looking.Code[0]))}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	}
	if err == nil {
		err = unix.Exec(os.Args[1], os.Args[1:], nil)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestSEC82OldestFilter: filters that a container's process has loaded itself do not change which one is read. And where the reader
// has a filter, so that the oldest is not the runtime's, nothing is read.
func TestSEC82OldestFilter(t *testing.T) {
	l := newLab(t)
	l.filter = allowing
	t.Setenv(filteredEnv, "1")
	pid, err := l.start(nil, os.Args[0])
	l.must(err)
	if got, err := l.take(pid, os.Args[0]); err == nil || err.Error() != "trace the process: invalid argument" {
		t.Errorf("by a reader with a filter: %x, %v", got, err)
	}
	l.must(os.Unsetenv(filteredEnv))
	if got, err := l.take(pid); err != nil || !slices.Equal(got, looking.Code) {
		t.Errorf("%x, %v", got, err)
	}
}

// TestTakeGivesSignalsBack: a process whose filter is read loses no signal, whether or not it has a filter.
func TestTakeGivesSignalsBack(t *testing.T) {
	l := newLab(t)
	for _, filter := range []*Filter{nil, allowing} {
		l.filter = filter
		r, w, err := os.Pipe()
		l.must(err)
		l.out = w
		// It sends itself signals as fast as it can, and says so every hundred times.
		pid, err := l.start(func(s *specs.Spec) {
			s.Process.Args = []string{"/busybox", "sh", "-c", "trap 'got=$((got+1))' USR1; sent=0 got=0; " +
				"while :; do sent=$((sent+1)); kill -USR1 $$; [ $((sent%100)) != 0 ] || echo $sent $got; done"}
		})
		w.Close()
		l.out = nil
		l.must(err)
		lines := bufio.NewScanner(r)
		for range 60 {
			_, _ = l.take(pid)
			if !lines.Scan() {
				t.Fatalf("it has ended: %v", lines.Err())
			}
			if sent, got, _ := strings.Cut(lines.Text(), " "); sent != got {
				t.Fatalf("filter %v: sent %s signals, got %s", filter, sent, got)
			}
		}
		r.Close()
	}
}
