package place

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/cgroup"
)

// aCommand is what a probe executes.
func aCommand() *specs.Process {
	return &specs.Process{Args: []string{"busybox", "true"}, Cwd: "/", Env: []string{"PATH=/bin:/", "HOME=/"},
		Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true,
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 1000}}}
}

// TestUnableCommand: every part of a process that this package does not do is a reason to leave it to the runtime.
func TestUnableCommand(t *testing.T) {
	for _, row := range []struct {
		why    string // "": it can
		change func(*specs.Process)
	}{
		{"", func(*specs.Process) {}},
		{"", func(p *specs.Process) {
			p.Args = []string{"./x", ""}
			p.Capabilities.Bounding, p.Capabilities.Ambient = []string{"CAP_CHOWN"}, []string{"CAP_CHECKPOINT_RESTORE"}
			p.User, p.NoNewPrivileges = specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}}, false
			p.Rlimits[0].Type = "RLIMIT_AS"
		}},
		{"Terminal", func(p *specs.Process) { p.Terminal = true }},
		{"ConsoleSize", func(p *specs.Process) { p.ConsoleSize = &specs.Box{Width: 1} }},
		{"apparmorProfile", func(p *specs.Process) { p.ApparmorProfile = strings.Repeat("x", 512) }},
		{"SelinuxLabel", func(p *specs.Process) { p.SelinuxLabel = "x" }},
		{"Umask", func(p *specs.Process) { p.User.Umask = ptr(uint32(0)) }},
		{"Username", func(p *specs.Process) { p.User.Username = "x" }},
		{"Scheduler", func(p *specs.Process) { p.Scheduler = &specs.Scheduler{Nice: 1} }},
		{"IOPriority", func(p *specs.Process) { p.IOPriority = &specs.LinuxIOPriority{Priority: 1} }},
		{"ExecCPUAffinity", func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"} }},
		{"capabilities are missing", func(p *specs.Process) { p.Capabilities = nil }},
		{"CAP_NEW", func(p *specs.Process) { p.Capabilities.Effective = []string{"CAP_NEW"} }},
		{"args", func(p *specs.Process) { p.Args = nil }},
		{"args", func(p *specs.Process) { p.Args[0] = "" }},
		{"args", func(p *specs.Process) { p.Args[0] = "a\x00b" }},
		{"args", func(p *specs.Process) { p.Args = slices.Repeat([]string{"x"}, 20000) }},
		{"args", func(p *specs.Process) { p.Args[1] = strings.Repeat("x", 1<<20) }},
		{"args", func(p *specs.Process) { p.Env[0] = "PATH=/bin::/" }}, // the working folder
		{"args", func(p *specs.Process) { p.Env[0] = "PATH=bin" }},
		{"args", func(p *specs.Process) { p.Env = p.Env[1:] }},
		{"env", func(p *specs.Process) { p.Env = append(p.Env, "HOME=") }},
		{"env", func(p *specs.Process) { p.Env = append(p.Env, "X") }},
		{"env", func(p *specs.Process) { p.Env = append(p.Env, "=X") }},
		{"env", func(p *specs.Process) { p.Env = p.Env[:1] }},
		{"cwd", func(p *specs.Process) { p.Cwd = "" }},
		{"cwd", func(p *specs.Process) { p.Cwd = "tmp" }},
		{"cwd", func(p *specs.Process) { p.Cwd = strings.Repeat("/x", 2048) }},
		{"rlimits", func(p *specs.Process) { p.Rlimits = nil }},
		{"rlimits", func(p *specs.Process) { p.Rlimits[0].Type = "RLIMIT_NEW" }},
		{"rlimits", func(p *specs.Process) { p.Rlimits[0].Hard = 1 }},
		{"rlimits", func(p *specs.Process) { p.Rlimits = append(p.Rlimits, p.Rlimits[0]) }},
		{"additionalGids", func(p *specs.Process) { p.User.AdditionalGids = make([]uint32, 33) }},
	} {
		p := aCommand()
		row.change(p)
		if got := UnableCommand(p); (got == "") != (row.why == "") || !strings.Contains(got, row.why) {
			t.Errorf("want %q, got %q", row.why, got)
		}
	}
	if _, err := ParseProcess([]byte(`{"args": ["x"], "newField": true}`)); err == nil {
		t.Error("an unknown field was not seen")
	}
}

const aState = `{"cgroup_paths": {"memory": "/sys/fs/cgroup/memory/x", "freezer": "/sys/fs/cgroup/freezer/x"},
	"config": {"oom_score_adj": 5, "namespaces": [{"type": "NEWNS"}, {"type": "NEWNET", "path": "/run/netns/x"}]}}`

// aUnified is in a scope that systemd has made, with cgroups of version 2.
var aUnified = strings.Replace(aState, `{"memory": "/sys/fs/cgroup/memory/x", "freezer": "/sys/fs/cgroup/freezer/x"}`,
	`{"": "/sys/fs/cgroup/x.slice/y.scope"}`, 1)

// aFiltered has loaded a seccomp filter.
var aFiltered = strings.Replace(aState, `"oom`, `"seccomp": {"flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}, "oom`, 1)

func seccomp(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno} }

// TestUnableContainer: every part of a container that matters to its commands, and that this package does not do, is a reason to leave
// them to the runtime.
func TestUnableContainer(t *testing.T) {
	for _, row := range []struct {
		why    string // "": it can
		state  string // what becomes of the state
		change func(*specs.Spec)
	}{
		{"", aState, func(*specs.Spec) {}},
		{"", aFiltered, seccomp},
		{"", strings.Replace(aFiltered, `["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]`, "null", 1), seccomp}, // runc before 1.2
		{"config.seccomp.flags", strings.Replace(aFiltered, "SPEC_ALLOW", "LOG", 1), seccomp},
		{"config.seccomp.flags", strings.Replace(aFiltered, `["`, `["SECCOMP_FILTER_FLAG_LOG", "`, 1), seccomp},
		{"another seccomp profile", aState, seccomp},
		{"another seccomp profile", aFiltered, func(*specs.Spec) {}},
		{"", aState, func(s *specs.Spec) {
			s.Linux.MaskedPaths, s.Linux.Sysctl = []string{"/proc/x"}, map[string]string{"kernel.sem": "1"}
			s.Mounts, s.Linux.Devices = append(s.Mounts, s.Mounts[0]), []specs.LinuxDevice{{Path: "/dev/fuse"}}
		}},
		{"state", "", func(*specs.Spec) {}},
		{"missing", `{}`, func(*specs.Spec) {}},
		{"missing", aState, func(s *specs.Spec) { s.Process = nil }},
		{"missing", strings.Replace(aState, `"oom_score_adj": 5, `, "", 1), func(*specs.Spec) {}},
		{"cgroup", strings.Replace(aState, "/sys/fs/cgroup/memory", "/tmp", 1), func(*specs.Spec) {}},
		{"cgroup", strings.Replace(aState, "memory/x", "../../tmp", 1), func(*specs.Spec) {}},
		{"NEWUSER", strings.Replace(aState, "NEWNET", "NEWUSER", 1), func(*specs.Spec) {}},
		{"NEWTIME", strings.Replace(aState, "NEWNET", "NEWTIME", 1), func(*specs.Spec) {}},
		{"namespaces", strings.Replace(aState, "NEWNS", "NEWIPC", 1), func(*specs.Spec) {}},
		{"", strings.Replace(aState, `"oom`, `"apparmor_profile": "x", "oom`, 1), func(*specs.Spec) {}},
		{"AppArmor", strings.Replace(aState, `"oom`, `"apparmor_profile": "x\u0000y", "oom`, 1), func(*specs.Spec) {}},
		{"", aUnified, func(*specs.Spec) {}},
		{"SELinux", strings.Replace(aState, `"oom`, `"process_label": "x", "oom`, 1), func(*specs.Spec) {}},
		{"not root", strings.Replace(aState, `"oom`, `"rootless_cgroups": true, "oom`, 1), func(*specs.Spec) {}},
		{"Personality", aState, func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "LINUX32"} }},
		{"UIDMappings", aState, func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }},
		{"TimeOffsets", aState, func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} }},
		{"IntelRdt", aState, func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"} }},
		{"defaultAction", aFiltered, func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} }}, // runc loads no filter
		{"flags", aFiltered, func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}}
		}},
	} {
		s := aSpec()
		row.change(s)
		config, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := NewContainer("c", config, []byte(row.state)); (got == "") != (row.why == "") || !strings.Contains(got, row.why) {
			t.Errorf("want %q, got %q", row.why, got)
		}
	}
}

// TestSEC82FilterFlags: a command gets the flags that runc has used for its container, and no filter is loaded with others.
func TestSEC82FilterFlags(t *testing.T) {
	const allow = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	for state, want := range map[string]int64{
		aFiltered: allow,
		strings.Replace(aFiltered, `["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]`, "[]", 1): 0,
		strings.Replace(aFiltered, "SPEC_ALLOW", "LOG", 1):                        -1,
		aState: -1,
		"":     -1,
	} {
		if flags, err := FlagsIn([]byte(state)); (err == nil) != (want >= 0) || err == nil && int64(flags) != want {
			t.Errorf("%s: %d, %v; want %d", state, flags, err, want)
		}
	}
	for _, c := range []*Container{{profile: Profile("{}"), flags: allow}, {profile: Profile("{}"), flags: 0}, {}} {
		for _, f := range []*Filter{{Flags: allow, Code: []uint64{6}}, {Code: []uint64{6}}, {Flags: c.flags}, {Flags: 2, Code: []uint64{6}}, nil} {
			fits := f == nil && c.profile == nil || f.Valid() && c.profile != nil && f.Flags == c.flags
			job, err := c.Prepare(Command{Process: aCommand(), Filter: f, PidFile: filepath.Join(t.TempDir(), "pid")})
			if (err == nil) != fits {
				t.Errorf("container %+v, filter %+v: %v", c, f, err)
			}
			if err == nil {
				job.Close()
			}
		}
	}
}

// TestKey: a profile has another key for another file of the runtime, even at the same path.
func TestKey(t *testing.T) {
	runtime := filepath.Join(t.TempDir(), "runc")
	write := func(path, text string) {
		if err := errors.Join(os.WriteFile(runtime+".new", []byte(text), 0o755), os.Rename(runtime+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	key := func(p Profile, path string) Key {
		k, err := p.Key(path)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write(runtime, "a")
	write(runtime+"2", "a")
	first := key(Profile("{}"), runtime)
	if again := key(Profile("{}"), runtime); again != first {
		t.Error("it changes")
	}
	others := []Key{key(Profile("{ }"), runtime), key(Profile("{}"), runtime+"2")}
	write(runtime, "b")
	if others = append(others, key(Profile("{}"), runtime)); slices.Contains(others, first) {
		t.Errorf("%v is among %v", first, others)
	}
	if k, err := Profile("{}").Key(runtime + "3"); err == nil {
		t.Errorf("without a file: %v", k)
	}
}

// execute executes a command in a container that start has made, and returns what it prints.
func (l *lab) execute(pid int, change func(*Container, *specs.Process), through ...string) (string, error) {
	l.Helper()
	c := &Container{id: "place-test", namespaces: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, oomScore: 100}
	for _, h := range cgroup.Mounts() {
		if dir := filepath.Join(h.Mount, l.parent, "c1"); wanted(h) {
			if _, err := os.Stat(dir); err == nil {
				c.cgroups = append(c.cgroups, dir)
			}
		}
	}
	p := aCommand()
	change(c, p)
	if why := UnableCommand(p); why != "" {
		l.Fatalf("the command cannot be placed: %s", why)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	l.must(err)
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	lock, err := os.Open(os.DevNull)
	l.must(err)
	defer lock.Close()
	r, w, err := os.Pipe()
	l.must(err)
	defer r.Close()
	defer w.Close()
	l.n++
	pidFile := filepath.Join(l.dir, fmt.Sprintf("pid%d", l.n))
	if l.filter != nil {
		c.profile, c.flags = Profile("{}"), l.filter.Flags
	}
	job, err := c.Prepare(Command{Process: p, Pidfd: pidfd, Stdio: [3]*os.File{nil, w, w}, Lock: lock, PidFile: pidFile, Filter: l.filter})
	l.must(err)
	defer job.Close()
	if _, err := l.run(job, pidFile, through...); err != nil {
		if made, noPid := job.Pid(); noPid == nil { // the end of its pid namespace waits for it
			_, _ = unix.Wait4(made, nil, 0, nil)
		}
		return "", err
	}
	w.Close()
	said, err := io.ReadAll(r)
	l.must(err)
	return string(said), nil
}

// TestSEC82InsideACommand: signals, descriptors, folder and cgroups of a command are its own or its container's, whatever its parent has;
// and neither its file nor its folder is looked for outside.
func TestSEC82InsideACommand(t *testing.T) {
	l := newLab(t)
	pid, err := l.start(nil)
	l.must(err)
	const script = "busybox grep -E 'Sig(Ign|Blk)|CapEff|CapBnd|NoNew' /proc/self/status; busybox ls /proc/self/fd | busybox tr '\\n' ' '; " +
		"busybox pwd; busybox ls /; busybox cut -d: -f3 /proc/self/cgroup | busybox sort -u"
	through := []string{"/bin/bash", "-c", "trap '' HUP INT PIPE; exec 60</; exec \"$0\""}
	const zero = "\t0000000000000000\n"
	// 3 is the folder that ls reads.
	want := "SigBlk:" + zero + "SigIgn:" + zero + "CapEff:" + zero + "CapBnd:" + zero + "NoNewPrivs:\t1\n0 1 2 3 /\nbusybox\ndev\nproc\n" + l.parent + "/c1\n"
	for _, user := range []uint32{65535, 0} {
		said, err := l.execute(pid, func(_ *Container, p *specs.Process) {
			p.Args, p.User.UID = []string{"busybox", "sh", "-c", script}, user
		}, through...)
		if err != nil || said != want {
			t.Errorf("user %d sees\n%s\nwant\n%s\n%v", user, said, want, err)
		}
	}
	for _, row := range []struct {
		want   string
		change func(*Container, *specs.Process)
	}{
		{"look for the command: no such file or directory", func(_ *Container, p *specs.Process) { p.Args[0] = "bash" }},
		{"execute: no such file or directory", func(_ *Container, p *specs.Process) { p.Args[0] = "/bin/bash" }},
		{"execute: permission denied", func(_ *Container, p *specs.Process) { p.Args[0] = "/dev" }},
		{"go to the working folder: no such file or directory", func(_ *Container, p *specs.Process) { p.Cwd = "/tmp" }},
		{"go to the working folder: no such file or directory", func(_ *Container, p *specs.Process) { p.Cwd = "/proc/self/fd/60" }},
		{"set a resource limit: operation not permitted", func(_ *Container, p *specs.Process) { p.Rlimits[0].Hard = 1 << 62 }},
	} {
		if said, err := l.execute(pid, row.change, through...); err == nil || err.Error() != row.want {
			t.Errorf("want %q, got %q, %v", row.want, said, err)
		}
	}
}

// TestCommandInPath: the first file that may be executed is the command, as for runc, also if its interpreter is missing. What is no
// such file is passed over.
func TestCommandInPath(t *testing.T) {
	l := newLab(t)
	for name, mode := range map[string]os.FileMode{"plain/x": 0o644, "broken/x": 0o755, "whole/x": 0o755, "folders/x/x": 0o755} {
		path := filepath.Join(l.dir, "root", name)
		l.must(os.MkdirAll(filepath.Dir(path), 0o755))
		text := "#!/busybox echo\n"
		if name == "broken/x" {
			text = "#!/nothing\n"
		}
		l.must(os.WriteFile(path, []byte(text), mode))
	}
	pid, err := l.start(nil)
	l.must(err)
	for path, want := range map[string]string{
		"/none:/busybox:/folders:/plain:/whole:/broken": "/whole/x\n",
		"/none:/busybox:/folders:/plain:/broken:/whole": "execute: no such file or directory",
		"/none:/plain": "look for the command: no such file or directory",
	} {
		for _, user := range []uint32{0, 1000} {
			said, err := l.execute(pid, func(_ *Container, p *specs.Process) {
				p.Args, p.Env[0], p.User.UID = []string{"x"}, "PATH="+path, user
			})
			if err != nil {
				said = err.Error()
			}
			if said != want {
				t.Errorf("user %d, %s: %q, want %q", user, path, said, want)
			}
		}
	}
}

// TestSEC82FalseProc: what only looks like /proc is not written to, in the host or in the container.
func TestSEC82FalseProc(t *testing.T) {
	l := newLab(t)
	pid, err := l.start(nil)
	l.must(err)
	_, err = l.execute(pid, func(*Container, *specs.Process) {}, "unshare", "-m", "/bin/sh", "-c",
		"mount -t tmpfs none /proc && mkdir /proc/self && : >/proc/self/oom_score_adj && exec \"$0\"")
	if !errors.Is(err, unix.EBADMSG) || !strings.Contains(err.Error(), "oom_score_adj") {
		t.Errorf("with a false /proc: %v", err)
	}
	confined := func(_ *Container, p *specs.Process) { p.ApparmorProfile = "nothing" }
	_, err = l.execute(pid, confined, "unshare", "-m", "/bin/sh", "-c", "mkdir -p $0/real && mount -t proc none $0/real && mount -t tmpfs none /proc && "+
		"mkdir -p /proc/self/attr/apparmor && ln -s $0/real/self/oom_score_adj /proc/self/ && : >/proc/self/attr/apparmor/exec && exec \"$1\"", l.dir)
	if !errors.Is(err, unix.EBADMSG) || !strings.Contains(err.Error(), "AppArmor") {
		t.Errorf("with a false file of a profile: %v", err)
	}
	if _, err := l.execute(pid, confined); err == nil || !strings.Contains(err.Error(), "AppArmor") { // the host has none, or no such one
		t.Errorf("with a profile that cannot be had: %v", err)
	}
}
