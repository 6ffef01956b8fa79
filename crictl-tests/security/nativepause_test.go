package security

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// podKinds are pods whose pause processes differ.
var podKinds = []struct {
	name   string
	change func(*cri.PodSandboxConfig)
}{
	{"default", func(*cri.PodSandboxConfig) {}},
	{"host network", harness.OnHostNetwork},
	{"host pid", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
	}},
	{"host ipc", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	}},
	{"all of the host's", func(c *cri.PodSandboxConfig) {
		harness.OnHostNetwork(c)
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_NODE
		c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	}},
	{"shared pid", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	}},
	{"user namespace", harness.InUserNamespace},
	{"user namespace, sysctls", func(c *cri.PodSandboxConfig) {
		harness.InUserNamespace(c)
		c.Linux.Sysctls = map[string]string{"net.ipv4.tcp_syncookies": "0"}
	}},
	{"sysctls", func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "kernel.msgmax": "4096", "net.ipv4.ip_local_port_range": "30000 30100", "fs.mqueue.msg_max": "20"}
	}},
	{"unconfined", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	}},
	{"privileged", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }},
	{"user, groups, read-only", func(c *cri.PodSandboxConfig) {
		s := c.Linux.SecurityContext
		s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 2000}, []int64{3000, 4000}
		s.ReadonlyRootfs = true
	}},
}

// TestSEC80NativePauseIsRuncs: a pause process that was started without the runtime is, line by line, what runc makes of the same request.
func TestSEC80NativePauseIsRuncs(t *testing.T) {
	t.Parallel()
	byRunc, native := harness.NewDaemon(t, harness.WithTop(`pause = "runtime"`)), harness.NewDaemon(t)
	file := filepath.Join(native.Dir, "profile.json")
	native.Must(os.WriteFile(file, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600))
	kinds := append(slices.Clone(podKinds), struct {
		name   string
		change func(*cri.PodSandboxConfig)
	}{"localhost profile", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Seccomp = harness.Localhost(file) }})
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			want := portrait(t, byRunc.RunPod(kind.change))
			got := portrait(t, nativePod(t, native, kind.change))
			for _, key := range sortedKeys(want, got) {
				if key == "fd 2" || key == "fd flags 2" {
					continue // the FIFO of the task; runc's own errors go to a pipe, which its pause process keeps
				}
				if want[key] != got[key] {
					t.Errorf("%s\n  by runc:  %q\n  natively: %q", key, want[key], got[key])
				}
			}
			if len(want) < 100 {
				t.Errorf("only %d properties were compared", len(want))
			}
		})
	}
}

// nativePod returns the first pod with these options that was started without the runtime: the runtime starts those whose seccomp filter
// is not known yet.
func nativePod(t *testing.T, d *harness.Daemon, options ...harness.PodOption) *harness.Pod {
	t.Helper()
	var p *harness.Pod
	harness.Eventually(t, "a pod that is started without the runtime", func() error {
		p = d.RunPod(options...)
		_, err := os.Stat(filepath.Join(d.State, "runc", p.ID))
		if err == nil {
			p.Stop()
			p.Remove()
		}
		return harness.Unless(os.IsNotExist(err), "the runtime has started %s", p.ID)
	})
	return p
}

func sortedKeys(a, b map[string]string) []string {
	var keys []string
	for _, m := range []map[string]string{a, b} {
		for k := range m {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// portrait is all that can be seen of a pod's pause process, without what differs between any two.
func portrait(t *testing.T, p *harness.Pod) map[string]string {
	t.Helper()
	pid := p.PausePID()
	seen := processPortrait(t, p, pid)
	treeOf(t, fmt.Sprintf("/proc/%d/root", pid), seen)
	for _, name := range []string{"kernel/hostname", "kernel/shm_rmid_forced", "kernel/msgmax", "kernel/shmmax", "fs/mqueue/msg_max",
		"net/ipv4/ip_local_port_range", "net/ipv4/tcp_syncookies", "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"} {
		out, err := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-i", "-n", "-u", "cat", "/proc/sys/"+name).CombinedOutput()
		seen["sysctl "+name] = strings.ReplaceAll(string(out), p.Config.Metadata.Name, "NAME") + fmt.Sprint(err)
	}
	return seen
}

// processPortrait is what can be seen of a process in a pod. The words are in its own texts, and are left out there.
func processPortrait(t *testing.T, p *harness.Pod, pid int, words ...string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	proc := fmt.Sprintf("/proc/%d/", pid)
	shim := strconv.Itoa(p.Role("shim"))
	plain := func(text string) string {
		text = strings.ReplaceAll(text, p.ID, "POD")
		text = strings.ReplaceAll(text, p.Dir, "DIR")
		text = strings.ReplaceAll(text, p.Instance(), "INSTANCE") // before the words, which may be short and part of it
		for i, word := range words {
			text = strings.ReplaceAll(text, word, fmt.Sprintf("WORD%d", i))
		}
		return strings.ReplaceAll(text, p.Config.Metadata.Name, "NAME")
	}
	volatile := regexp.MustCompile(`^(Pid|Tgid|Ngid|Vm\w+|Rss\w+|Hugetlb\w+|SigQ|\w*ctxt_switches|x86_\w+)$`)
	for line := range strings.Lines(harness.HostFile(t, proc+"status")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		if key == "PPid" || strings.HasPrefix(key, "NS") {
			value = numbersOf(value, shim, strconv.Itoa(pid))
		}
		if !volatile.MatchString(key) {
			seen["status "+key] = value
		}
	}
	for _, name := range []string{"limits", "oom_score_adj", "uid_map", "gid_map", "projid_map", "setgroups", "attr/current", "attr/exec", "environ", "cmdline",
		"personality", "timens_offsets", "loginuid", "coredump_filter", "cgroup", "comm", "timerslack_ns", "cpuset"} {
		raw, err := os.ReadFile(proc + name)
		seen[name] = plain(string(raw)) + fmt.Sprint(unwrapped(err))
	}
	for _, name := range []string{"cwd", "root", "exe"} {
		to, err := os.Readlink(proc + name)
		seen[name] = plain(to) + fmt.Sprint(unwrapped(err))
	}
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"} {
		own, _ := os.Readlink("/proc/self/ns/" + ns)
		its, err := os.Readlink(proc + "ns/" + ns)
		p.Must(err)
		seen["ns "+ns] = fmt.Sprintf("the host's: %v, owner is its user namespace: %v", own == its, ownedBy(t, proc+"ns/"+ns, proc+"ns/user"))
	}
	stat := strings.Fields(regexp.MustCompile(`\(.*\)`).ReplaceAllString(harness.HostFile(t, proc+"stat"), "comm"))
	for i, name := range map[int]string{4: "process group", 5: "session"} {
		seen[name] = strings.ReplaceAll(stat[i], strconv.Itoa(pid), "PID")
	}
	seen["terminal, priority, nice, policy"] = strings.Join([]string{stat[6], stat[17], stat[18], stat[40]}, " ")
	seen["mountinfo"] = plain(mountsOf(harness.HostFile(t, proc+"mountinfo")))
	descriptorsOf(t, p, proc, plain, seen)
	cgroupsOf(t, proc, plain, seen)
	filterOf(t, pid, seen)
	return seen
}

// numbersOf is a line of pids, without those that differ between any two processes: the shim's, its own, and its own in the pod.
func numbersOf(value, shim, pid string) string {
	fields := strings.Fields(value)
	for i, f := range fields {
		switch {
		case f == shim:
			fields[i] = "SHIM"
		case f == pid:
			fields[i] = "PID"
		case i > 0 && f != "1":
			fields[i] = "INNER"
		}
	}
	return strings.Join(fields, " ")
}

// ownedBy says whether a namespace belongs to a user namespace.
func ownedBy(t *testing.T, namespace, user string) bool {
	t.Helper()
	f, err := os.Open(namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false // above the initial one
	}
	defer unix.Close(owner)
	var its, want unix.Stat_t
	if err := unix.Fstat(owner, &its); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(user, &want); err != nil {
		t.Fatal(err)
	}
	return its.Ino == want.Ino
}

func unwrapped(err error) any {
	if e, ok := err.(*fs.PathError); ok {
		return e.Err
	}
	return ""
}

// mountsOf numbers mounts by their order, and devices and peer groups not at all.
func mountsOf(text string) string {
	number := map[string]string{}
	var lines []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		number[f[0]] = fmt.Sprintf("m%d", len(number))
		if strings.HasPrefix(f[2], "0:") {
			f[2] = "0:x"
		}
		if f[1] = number[f[1]]; f[1] == "" {
			f[1] = "outside"
		}
		lines = append(lines, regexp.MustCompile(`(master|shared|propagate_from):\d+`).ReplaceAllString(strings.Join(append([]string{number[f[0]]}, f[1:]...), " "), "$1:x"))
	}
	return strings.Join(lines, "\n")
}

func descriptorsOf(t *testing.T, p *harness.Pod, proc string, plain func(string) string, seen map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(proc + "fd")
	p.Must(err)
	for _, e := range entries {
		to, err := os.Readlink(proc + "fd/" + e.Name())
		p.Must(err)
		seen["fd "+e.Name()] = regexp.MustCompile(`\[\d+\]`).ReplaceAllString(plain(to), "[x]")
		for line := range strings.Lines(harness.HostFile(t, proc+"fdinfo/"+e.Name())) {
			if strings.HasPrefix(line, "flags:") {
				seen["fd flags "+e.Name()] = line
			}
		}
	}
}

// cgroupsOf reads the files of the process's cgroups that say how it is limited.
func cgroupsOf(t *testing.T, proc string, plain func(string) string, seen map[string]string) {
	t.Helper()
	counts := regexp.MustCompile(`usage|stat|events|failcnt|procs$|tasks$|pressure|current|peak|acct|time|serviced|service_bytes|merged|queued|sectors|threads$`)
	for line := range strings.Lines(harness.HostFile(t, proc+"cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		mount := map[string]string{"": "unified", "name=systemd": "systemd"}[f[1]]
		if mount == "" {
			mount = f[1]
		}
		if harness.OnUnified() {
			mount = ""
		}
		dir := filepath.Join("/sys/fs/cgroup", mount, f[2])
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() || counts.MatchString(e.Name()) {
				continue
			}
			raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
			lines := strings.Split(string(raw), "\n")
			slices.Sort(lines)
			seen["cgroup "+f[1]+" "+e.Name()] = strings.Join(lines, "\n") + fmt.Sprint(unwrapped(err))
		}
		raw, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		seen["cgroup "+f[1]+" processes"] = fmt.Sprint(len(strings.Fields(string(raw))))
		if harness.OnUnified() {
			seen["device programs"] = devicePrograms(t, dir)
		}
		if filepath.Ext(dir) == ".scope" {
			unitOf(t, filepath.Base(dir), plain, seen)
		}
	}
}

// unitOf is what systemd says of a scope.
func unitOf(t *testing.T, unit string, plain func(string) string, seen map[string]string) {
	t.Helper()
	out, err := exec.Command("systemctl", "show", unit).Output()
	if err != nil {
		t.Fatalf("systemctl show %s: %v", unit, err)
	}
	// DropInPaths and NeedDaemonReload: runc says some of it in a second request. CollectMode: see package systemd.
	volatile := regexp.MustCompile(`Timestamp|InvocationID|^(Memory|CPU|IO|IP|Tasks|Effective)\w*(Current|Available|NSec|Bytes|Packets|Operations|Peak)$|^(CollectMode|DropInPaths|NeedDaemonReload|FragmentPath|ControlGroupId)$`)
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if volatile.MatchString(name) {
			continue
		}
		words := strings.Fields(plain(value))
		slices.Sort(words)
		seen["unit "+name] += strings.Join(words, " ") + "\n"
	}
}

// devicePrograms names the programs that decide about the devices of a cgroup of version 2 by the kernel's hashes of them.
func devicePrograms(t *testing.T, dir string) string {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var ids [64]uint32
	query := struct {
		cgroup, kind, effective, flags uint32
		ids                            unsafe.Pointer
		count, _                       uint32
		_, _, _, _                     uint64
	}{cgroup: uint32(fd), kind: unix.BPF_CGROUP_DEVICE, ids: unsafe.Pointer(&ids), count: uint32(len(ids))}
	bpf(t, unix.BPF_PROG_QUERY, unsafe.Pointer(&query), unsafe.Sizeof(query))
	text := fmt.Sprintf("flags %d:", query.flags)
	for _, id := range ids[:query.count] {
		program := bpf(t, unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&id), unsafe.Sizeof(id))
		var info struct { // the begin of struct bpf_prog_info
			kind, id uint32
			tag      [8]byte
			_        [200]byte
		}
		about := struct {
			program, size uint32
			info          unsafe.Pointer
		}{uint32(program), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)}
		bpf(t, unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&about), unsafe.Sizeof(about))
		_ = unix.Close(int(program))
		text += fmt.Sprintf(" %x", info.tag)
	}
	return text
}

func bpf(t *testing.T, command uintptr, attr unsafe.Pointer, size uintptr) uintptr {
	t.Helper()
	r, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	runtime.KeepAlive(attr)
	if errno != 0 {
		t.Fatalf("bpf(%d): %v", command, errno)
	}
	return r
}

// treeOf describes each file of the root filesystem outside /proc.
func treeOf(t *testing.T, root string, seen map[string]string) {
	t.Helper()
	err := filepath.WalkDir(root+"/", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		to, _ := os.Readlink(path)
		at := strings.TrimPrefix(path, root)
		seen["file "+at] = fmt.Sprintf("%v %d:%d rdev %x -> %s", info.Mode(), st.Uid, st.Gid, st.Rdev, to)
		if at == "/proc" {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// filterOf reads the seccomp filters of a process, which it stops for a moment.
func filterOf(t *testing.T, pid int, seen map[string]string) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.PtraceDetach(pid) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	var filter [4096]uint64
	n := 0
	for i := range uintptr(2) {
		got, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), i, uintptr(unsafe.Pointer(&filter)), 0, 0)
		if errno == 0 {
			n = int(got)
		}
		seen[fmt.Sprintf("seccomp filter %d", i)] = errno.Error()
	}
	meta := [2]uint64{}
	_, _, _ = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_METADATA, uintptr(pid), 16, uintptr(unsafe.Pointer(&meta)), 0, 0)
	seen["seccomp flags"] = fmt.Sprintf("%x", meta[1])
	if n > 0 {
		seen["seccomp answers"] = answersOf(filter[:n])
	}
}

// answersOf says how a filter answers every system call of every architecture, with arguments that profiles look at. The compiler of
// filters puts architectures in any order, so the instructions of two compilations differ.
func answersOf(filter []uint64) string {
	var out strings.Builder
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_PPC64} {
		last, from := "", 0
		for _, base := range []uint32{0, 0x40000000} {
			for nr := range uint32(700) {
				var all []string
				for _, arg := range []uint64{0, 1, 2, 16, 38, 40, 0x20000, 0x20008, 0x7e020000, 0x10000000, 0xffffffff, 1 << 40} {
					all = append(all, strconv.FormatUint(uint64(runFilter(filter, arch, base|nr, arg)), 16))
				}
				if now := strings.Join(all, " "); now != last {
					fmt.Fprintf(&out, "%x/%x from %d: %s\n", arch, base, from, now)
					last, from = now, int(nr)
				}
			}
		}
	}
	return out.String()
}

// runFilter is what the kernel does with a filter; every argument of the call is arg.
func runFilter(filter []uint64, arch, nr uint32, arg uint64) uint32 {
	var a, x uint32
	data := [16]uint32{nr, arch, 0, 0}
	for i := 4; i < 16; i += 2 {
		data[i], data[i+1] = uint32(arg), uint32(arg>>32)
	}
	for pc := 0; pc < len(filter); pc++ {
		code, jt, jf, k := uint16(filter[pc]), int(filter[pc]>>16&0xff), int(filter[pc]>>24&0xff), uint32(filter[pc]>>32)
		jump := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = data[k/4]
		case unix.BPF_RET | unix.BPF_K:
			return k
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == k)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > k)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= k)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&k != 0)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= k
		case unix.BPF_MISC | unix.BPF_TAX:
			x = a
		case unix.BPF_MISC | unix.BPF_TXA:
			a = x
		default:
			return 0xbad00000 | uint32(code)
		}
	}
	return 0xbad
}
