package place

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Container is what all commands in a running container share. It does not change.
type Container struct {
	id         string
	namespaces uint64 // those of its first process
	others     []otherNamespace
	cgroups    []string // folders
	freezer    freezer
	apparmor   string // profile, "" = none
	oomScore   int
	keyring    bool

	profile Profile // nil = none
	flags   uint32  // of its filter
}

// otherNamespace is joined by a path that the spec has.
type otherNamespace struct {
	path string
	kind uint64
}

// runcState is what runc needs of its own state file to execute a command.
type runcState struct {
	CgroupPaths map[string]string `json:"cgroup_paths"`
	Config      struct {
		Namespaces []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
		NoNewKeyring    bool   `json:"no_new_keyring"`
		OOMScoreAdj     *int   `json:"oom_score_adj"`
		RootlessCgroups bool   `json:"rootless_cgroups"`
		RootlessEUID    bool   `json:"rootless_euid"`
		AppArmorProfile string `json:"apparmor_profile"`
		ProcessLabel    string `json:"process_label"`

		Seccomp *runcSeccomp `json:"seccomp"`
	} `json:"config"`
}

// joinable are the namespaces that a command can join, by runc's names.
var joinable = map[string]uint64{
	"NEWNS": unix.CLONE_NEWNS, "NEWUTS": unix.CLONE_NEWUTS, "NEWIPC": unix.CLONE_NEWIPC, "NEWPID": unix.CLONE_NEWPID,
	"NEWNET": unix.CLONE_NEWNET, "NEWCGROUP": unix.CLONE_NEWCGROUP,
}

// NewContainer returns the container that a runc has started, from its spec and from runc's state of
// it. why says why its commands must be executed by runc.
func NewContainer(id string, config, state []byte) (c *Container, why string) {
	s, err := Parse(config)
	if err != nil {
		return nil, err.Error()
	}
	var st runcState
	if err := json.Unmarshal(state, &st); err != nil {
		return nil, fmt.Sprintf("read the runtime's state: %v", err)
	}
	if why := unableContainer(s, &st); why != "" {
		return nil, why
	}
	c = &Container{id: id, keyring: !st.Config.NoNewKeyring, oomScore: *st.Config.OOMScoreAdj,
		cgroups: slices.Sorted(maps.Values(st.CgroupPaths)), freezer: freezerOf(st.CgroupPaths),
		apparmor: st.Config.AppArmorProfile}
	c.cgroups = slices.Compact(c.cgroups)
	for _, n := range st.Config.Namespaces {
		kind, known := joinable[n.Type]
		switch {
		case !known:
			return nil, "namespaces: " + n.Type
		case n.Path == "":
			c.namespaces |= kind
		default:
			c.others = append(c.others, otherNamespace{n.Path, kind})
		}
	}
	if c.namespaces&unix.CLONE_NEWNS == 0 || len(c.others) > maxJoins {
		return nil, "namespaces"
	}
	if s.Linux.Seccomp != nil {
		if c.profile, err = ProfileOf(s); err != nil {
			return nil, err.Error()
		}
		if c.flags, why = st.Config.Seccomp.flags(); why != "" {
			return nil, why
		}
	}
	return c, ""
}

// unableContainer looks at all that runc takes from a container for its commands.
func unableContainer(s *specs.Spec, st *runcState) string {
	if s.Process == nil || s.Linux == nil || st.Config.OOMScoreAdj == nil || len(st.CgroupPaths) == 0 {
		return "part of the spec or of the runtime's state is missing"
	}
	cfg := st.Config
	switch {
	case cfg.RootlessCgroups || cfg.RootlessEUID:
		return "the runtime is not root"
	case cfg.ProcessLabel != "":
		return "the process has a label of SELinux"
	case !validProfile(cfg.AppArmorProfile):
		return "AppArmor profile"
	case (cfg.Seccomp != nil) != (s.Linux.Seccomp != nil):
		return "the runtime's state has another seccomp profile"
	case len(st.CgroupPaths) > 32:
		return "cgroups"
	}
	for _, dir := range st.CgroupPaths {
		if !strings.HasPrefix(dir, cgroupRoot+"/") || filepath.Clean(dir) != dir {
			return "cgroup " + dir
		}
	}
	rest := *s.Linux
	if rest.Seccomp != nil && rest.Seccomp.DefaultAction == "" {
		return "linux.seccomp.defaultAction" // the runtime may load no filter
	}
	if why := checkSeccomp(s, &specs.Spec{Linux: &rest}); why != "" {
		return why
	}
	// These are of no consequence for a command, or in the runtime's state.
	rest.Sysctl, rest.Resources, rest.CgroupsPath, rest.Namespaces = nil, nil, "", nil
	rest.Devices, rest.NetDevices, rest.RootfsPropagation = nil, nil, ""
	rest.MaskedPaths, rest.ReadonlyPaths, rest.MountLabel = nil, nil, ""
	return leftover(reflect.ValueOf(rest), "linux")
}

// Profile returns the container's seccomp profile, nil if it has none.
func (c *Container) Profile() Profile { return c.profile }

// freezer is the file that says whether the processes of a container run.
type freezer struct{ file, running string }

// freezerOf returns the file of the freezer of version 1, or of a cgroup of version 2 that is all
// that a container has; none if there is neither.
func freezerOf(cgroups map[string]string) freezer {
	if dir := cgroups["freezer"]; dir != "" {
		return freezer{filepath.Join(dir, "freezer.state"), "THAWED"}
	}
	if dir := cgroups[""]; dir != "" && len(cgroups) == 1 {
		return freezer{filepath.Join(dir, "cgroup.freeze"), "0"}
	}
	return freezer{}
}

// Paused reports whether processes of the container are not running now, or may not be.
func (c *Container) Paused() bool {
	if c.freezer.file == "" {
		return false
	}
	raw, err := os.ReadFile(c.freezer.file)
	return err != nil || string(bytes.TrimSpace(raw)) != c.freezer.running
}

// onExec is what the kernel is told to give the next program a profile of AppArmor.
const onExec = "exec "

func validProfile(name string) bool {
	return len(onExec)+len(name) <= maxProfile && !strings.ContainsRune(name, 0)
}

// Command describes a command to execute in a container.
type Command struct {
	Process *specs.Process // UnableCommand has said nothing about it
	Pidfd   *os.File       // the container's first process
	Filter  *Filter        // of the container's seccomp profile; nil if it has none
	Stdio   [3]*os.File
	Lock    *os.File // held until the command runs
	PidFile string   // gets the pid of the process in decimal digits
	Mark    []string // as in Start
}

// ParseProcess reads the process of a command. An error if it has a field that this program does not
// know.
func ParseProcess(encoded []byte) (*specs.Process, error) {
	d := json.NewDecoder(bytes.NewReader(encoded))
	d.DisallowUnknownFields()
	p := &specs.Process{}
	if err := d.Decode(p); err != nil {
		return nil, fmt.Errorf("read process: %w", err)
	}
	return p, nil
}

// Limits of the strings of a command, far below those of the kernel.
const maxStrings, maxStringBytes = 16 << 10, 1 << 20

// UnableCommand returns why a command must be executed by the runtime; "" if this package can do it.
func UnableCommand(p *specs.Process) string {
	rest := *p
	env, home := environment(p.Env)
	switch {
	case p.Capabilities == nil:
		return "capabilities are missing"
	case len(p.Args) == 0 || p.Args[0] == "":
		return "args"
	case !strings.HasPrefix(p.Cwd, "/") || len(p.Cwd) > maxRoot || strings.ContainsRune(p.Cwd, 0):
		return "cwd"
	case env == nil || !home:
		return "env" // the runtime would look for HOME in the container
	case len(p.User.AdditionalGids) > maxGroups:
		return "user.additionalGids is too long"
	case len(p.Rlimits) == 0 || len(p.Rlimits) > maxLimits:
		return "rlimits"
	case !validProfile(p.ApparmorProfile):
		return "apparmorProfile"
	case len(p.Args)+len(p.Env) > maxStrings || len(filesOf(p)) == 0:
		return "args and env"
	}
	size := 0
	for _, word := range slices.Concat(p.Args, p.Env, filesOf(p)) {
		if size += len(word) + 1; strings.ContainsRune(word, 0) || size > maxStringBytes {
			return "args and env"
		}
	}
	for i, l := range p.Rlimits {
		_, known := commandLimits[l.Type]
		if !known || l.Soft > l.Hard ||
			slices.ContainsFunc(p.Rlimits[:i], func(o specs.POSIXRlimit) bool { return o.Type == l.Type }) {
			return "rlimits: " + l.Type
		}
	}
	for _, list := range [][]string{p.Capabilities.Bounding, p.Capabilities.Effective, p.Capabilities.Permitted,
		p.Capabilities.Inheritable, p.Capabilities.Ambient} {
		for _, name := range list {
			if !slices.Contains(capabilities, name) {
				return "capabilities: " + name
			}
		}
	}
	rest.NoNewPrivileges, rest.Cwd, rest.Args, rest.Env, rest.OOMScoreAdj = false, "", nil, nil, nil
	rest.Rlimits, rest.Capabilities, rest.ApparmorProfile = nil, nil, ""
	rest.User.UID, rest.User.GID, rest.User.AdditionalGids = 0, 0, nil
	return leftover(reflect.ValueOf(rest), "process")
}

// capabilities are the names of the kernel's, by number.
var capabilities = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL
	CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN
	CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE
	CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG
	CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG
	CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)

// commandLimits are all limits: those of a command are set when nothing but its execution is left.
var commandLimits = map[string]uint32{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
	"RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
	"RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

func setOf(names []string) (set uint64) {
	for _, name := range names {
		set |= 1 << slices.Index(capabilities, name)
	}
	return set
}

// environment returns the variables as the runtime passes them on: of several with one name the
// last. nil if one is malformed; home reports whether HOME has a value.
func environment(env []string) (kept []string, home bool) {
	kept = []string{}
	seen := map[string]bool{}
	for _, v := range slices.Backward(env) {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" {
			return nil, false
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		home = home || name == "HOME" && value != ""
		kept = append(kept, v)
	}
	slices.Reverse(kept)
	return kept, home
}

// filesOf returns the files that a command may be, in the order in which they are tried; none if
// that depends on the working folder.
func filesOf(p *specs.Process) []string {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		return []string{name}
	}
	env, _ := environment(p.Env)
	var files []string
	for _, v := range env {
		path, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			if !filepath.IsAbs(dir) {
				return nil
			}
			files = append(files, filepath.Join(dir, name))
		}
	}
	return files
}

// takes reports whether a filter, or none, is what the container's processes have.
func (c *Container) takes(f *Filter) bool {
	if c.profile == nil || f == nil {
		return c.profile == nil && f == nil
	}
	return f.Valid() && f.Flags == c.flags
}

// Prepare returns the job that executes a command in the container. The job changes nothing if it
// fails.
func (c *Container) Prepare(cmd Command) (job *Job, err error) {
	if !c.takes(cmd.Filter) {
		return nil, errors.New("it needs another seccomp filter")
	}
	plan := c.plan(cmd.Process)
	j := &Job{}
	defer func() {
		if err != nil {
			j.Close()
		}
	}()
	if err := begin(j, cmd.Mark); err != nil {
		return nil, err
	}
	j.Files = []*os.File{cmd.Stdio[0], cmd.Stdio[1], cmd.Stdio[2], nil, nil, j.state, cmd.Lock, cmd.Pidfd}
	plan.Pidfd = int32(len(j.Files) - 1)
	plan.load(cmd.Filter)
	pidFile, err := os.OpenFile(cmd.PidFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	plan.PidFile = j.give(pidFile)
	for i, n := range c.others {
		f, err := os.Open(n.path)
		if err != nil {
			return nil, err
		}
		plan.Other[i].FD, plan.Other[i].Kind = j.give(f), uint32(n.kind)
	}
	for i, dir := range c.cgroups {
		f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		plan.Cgroup[i] = j.give(f)
	}
	text, err := memory("cribox-place-strings", j.strings(plan, cmd.Process), true)
	if err != nil {
		return nil, err
	}
	plan.Strings = j.give(text)
	return j, j.seal(plan)
}

// strings returns the strings of a command as place.c reads them.
func (j *Job) strings(plan *plan, p *specs.Process) []byte {
	env, _ := environment(p.Env)
	files := filesOf(p)
	plan.Args, plan.Envs, plan.Names = uint32(len(p.Args)), uint32(len(env)), uint32(len(files))
	text := []byte(strings.Join(slices.Concat(p.Args, env, files), "\x00") + "\x00")
	plan.StringsSize = uint64(len(text))
	return text
}

// plan returns the plan of a command without descriptors.
func (c *Container) plan(p *specs.Process) *plan {
	plan := &plan{Size: uint32(unsafe.Sizeof(plan{})), Mode: modeJoin, Namespaces: c.namespaces,
		UserNS: -1, NetNS: -1, Scope: -1,
		SetOOMScore: 1, OOMScore: int32(c.oomScore), Others: uint32(len(c.others)), Cgroups: int32(len(c.cgroups)),
		UID: p.User.UID, GID: p.User.GID,
		Bounding: setOf(p.Capabilities.Bounding), Effective: setOf(p.Capabilities.Effective),
		Permitted: setOf(p.Capabilities.Permitted), Inheritable: setOf(p.Capabilities.Inheritable),
		Ambient: setOf(p.Capabilities.Ambient)}
	plan.Groups = uint32(copy(plan.Group[:], p.User.AdditionalGids))
	for i, l := range p.Rlimits {
		plan.Limit[i] = planLimit{What: commandLimits[l.Type], Soft: l.Soft, Hard: l.Hard}
	}
	plan.Limits = int32(len(p.Rlimits))
	if p.NoNewPrivileges {
		plan.NoNewPrivileges = 1
	}
	if c.keyring {
		copy(plan.Ring[:len(plan.Ring)-1], "_ses."+c.id)
	}
	copy(plan.Folder[:maxRoot], p.Cwd)
	plan.confine(cmp.Or(p.ApparmorProfile, c.apparmor))
	return plan
}

// ErrNoProcess: the program came to its end before it made a process.
var ErrNoProcess = errors.New("no process was made")

// Executed reports whether the program was executed although the job has failed after that.
func (j *Job) Executed() bool {
	st, err := readState(j.state)
	return err != nil || stepNames[max(st.Step, 1)-1] == "write the pid file"
}

// Pid returns the process that a job has made, whether or not it executed the program.
func (j *Job) Pid() (int, error) {
	var raw [4]byte
	if _, err := j.state.ReadAt(raw[:], pidAt); err != nil {
		return 0, err
	}
	pid := int32(binary.NativeEndian.Uint32(raw[:]))
	if pid <= 0 {
		return 0, ErrNoProcess
	}
	return int(pid), nil
}
