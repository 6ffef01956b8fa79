package place

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// plan is struct plan of place.c, and state its struct state.
type plan struct {
	Size, Mode                             uint32
	Namespaces                             uint64
	UserNS, NetNS, PidFile, Scope          int32
	Cgroups, OOMScore, SetOOMScore, Limits int32
	Cgroup                                 [32]int32
	Limit                                  [maxLimits]planLimit
	UID, GID, Groups                       uint32
	Group                                  [maxGroups]uint32
	RingPermissions                        uint32
	Ring                                   [96]byte
	Mounts, Sysctls                        uint32
	Mount                                  [8]planMount
	Sysctl                                 [maxSysctls]planSysctl
	HostnameLength, RootReadonly           uint32
	Hostname                               [maxHostname + 8]byte
	Root                                   [maxRoot + 1]byte
	Arg, Env                               [maxWords]uint32
	Text                                   [maxText]byte
	Take, Out                              int32
	Pidfd, Strings                         int32
	Others, _                              uint32
	Other                                  [maxJoins]struct {
		FD   int32
		Kind uint32
	}
	StringsSize                                          uint64
	Args, Envs, Names, NoNewPrivileges                   uint32
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
	Folder                                               [maxRoot + 1]byte
	AppArmor                                             [maxProfile + 1]byte
	FilterFlags, Instructions                            uint32
	Filter                                               [maxInstructions]uint64
}

type planLimit struct {
	What, _    uint32
	Soft, Hard uint64
}

type planMount struct {
	Type, Source      [16]byte
	Target            [64]byte
	Attributes        uint64
	Readonly, Options uint32
	Option            [8]struct {
		Key   [16]byte
		Value [32]byte
	}
}

type planSysctl struct {
	Name  [160]byte
	Value [maxSysctlValue + 1]byte
}

type state struct{ Step, Error, Index int32 }

// pidAt is where the pid of the process stands in the file of the state.
const pidAt = 0x10000

// The sizes of what a plan holds.
const (
	maxLimits, maxGroups, maxSysctls = 16, 32, 32
	maxHostname, maxRoot             = 64, 4095
	maxWords, maxText                = 8, 1024
	maxSysctlName, maxSysctlValue    = 150, 351
	maxInstructions, maxJoins        = 4096, 8
	maxProfile                       = 511 // "exec NAME" of AppArmor
)

const modeStart, modeTake, modeJoin = 1, 2, 3

// stepNames are the names of the steps in place.c, of which the first is 1.
var stepNames = []string{
	"read the plan", "set oom_score_adj", "set a resource limit", "join the cgroup", "join the user namespace",
	"join the network namespace",
	"create the process", "join a session keyring", "stop mount propagation", "bind the root filesystem",
	"mount", "make device", "make link in /dev",
	"set sysctl", "set the host name", "change the root filesystem",
	"open /dev/null", "make the root filesystem read-only",
	"forbid new privileges", "empty the bounding set", "set the groups", "set the user", "drop the capabilities",
	"go to the working folder",
	"close descriptors", "load the seccomp filter", "execute", "write the pid file", "trace the process",
	"read the seccomp filter", "map the strings", "join the namespaces", "give the streams to the user",
	"look for the command", "take the AppArmor profile", "wait for the cgroup",
}

var cloneFlags = map[specs.LinuxNamespaceType]uint64{
	specs.MountNamespace: unix.CLONE_NEWNS, specs.UTSNamespace: unix.CLONE_NEWUTS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.PIDNamespace: unix.CLONE_NEWPID,
}

// limitNumbers are the limits that do not disturb the program itself, which sets them before it
// does its work.
var limitNumbers = map[string]uint32{
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_SIGPENDING": 11, "RLIMIT_LOCKS": 10,
}

// newPlan returns the plan for a spec of which Unable said nothing, without descriptors.
func newPlan(id string, s *specs.Spec, filter *Filter) (*plan, error) {
	p := &plan{Size: uint32(unsafe.Sizeof(plan{})), Mode: modeStart, UserNS: -1, NetNS: -1, Scope: -1,
		SetOOMScore: 1, RootReadonly: 1,
		UID: s.Process.User.UID, GID: s.Process.User.GID,
		HostnameLength: uint32(len(s.Hostname))}
	for _, n := range s.Linux.Namespaces {
		p.Namespaces |= cloneFlags[n.Type]
	}
	if s.Process.OOMScoreAdj != nil {
		p.OOMScore = int32(*s.Process.OOMScoreAdj)
	}
	for i, l := range s.Process.Rlimits {
		p.Limit[i] = planLimit{What: limitNumbers[l.Type], Soft: l.Soft, Hard: l.Hard}
	}
	p.Limits, p.Groups = int32(len(s.Process.Rlimits)), uint32(copy(p.Group[:], s.Process.User.AdditionalGids))
	for i, m := range s.Mounts {
		mount, err := mountOf(m)
		if err != nil {
			return nil, err
		}
		p.Mount[i] = mount
	}
	p.Mounts = uint32(len(s.Mounts))
	for i, name := range sysctlNames(s) {
		copy(p.Sysctl[i].Name[:], "sys/"+strings.ReplaceAll(name, ".", "/"))
		copy(p.Sysctl[i].Value[:], s.Linux.Sysctl[name])
	}
	p.Sysctls = uint32(len(s.Linux.Sysctl))
	copy(p.Hostname[:], s.Hostname)
	copy(p.Root[:], s.Root.Path)
	end := 1 // offset 0 ends a list
	for _, list := range []struct {
		words []string
		at    *[maxWords]uint32
	}{{s.Process.Args, &p.Arg}, {s.Process.Env, &p.Env}} {
		for i, word := range list.words {
			list.at[i] = uint32(end)
			end += copy(p.Text[end:], word) + 1
		}
	}
	p.keyring(id, hasNamespace(s, specs.UserNamespace))
	p.confine(s.Process.ApparmorProfile)
	p.load(filter)
	return p, nil
}

// confine has the program executed with a profile of AppArmor, if there is one.
func (p *plan) confine(profile string) {
	if profile != "" {
		copy(p.AppArmor[:maxProfile], onExec+profile)
	}
}

// load has the process load a filter, if there is one.
func (p *plan) load(f *Filter) {
	if f != nil {
		p.FilterFlags, p.Instructions = f.Flags, uint32(copy(p.Filter[:], f.Code))
	}
}

// keyring gives the process a session keyring of its own, with the permissions that runc sets: its
// possessor may do everything, and its user or anybody may search it.
func (p *plan) keyring(id string, userns bool) {
	const fresh, userSearch, otherSearch = 0x3f130000, 0x00080000, 0x00000008
	copy(p.Ring[:len(p.Ring)-1], "_ses."+id)
	p.RingPermissions = fresh | userSearch
	if userns {
		p.RingPermissions = fresh | otherSearch
	}
}

func sysctlNames(s *specs.Spec) []string {
	var names []string
	for name := range s.Linux.Sysctl {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// mountOf reads the options of a mount.
func mountOf(m specs.Mount) (planMount, error) {
	var p planMount
	copy(p.Type[:], m.Type)
	copy(p.Source[:], m.Source)
	copy(p.Target[:], m.Destination)
	for _, o := range m.Options {
		key, value, valued := strings.Cut(o, "=")
		switch {
		case o == "nosuid":
			p.Attributes |= unix.MOUNT_ATTR_NOSUID
		case o == "nodev":
			p.Attributes |= unix.MOUNT_ATTR_NODEV
		case o == "noexec":
			p.Attributes |= unix.MOUNT_ATTR_NOEXEC
		case o == "strictatime":
			p.Attributes |= unix.MOUNT_ATTR_STRICTATIME
		case o == "ro" && m.Type == "proc":
			p.Attributes |= unix.MOUNT_ATTR_RDONLY
			p.Readonly = 1
		case valued && m.Type == "tmpfs" && (key == "mode" || key == "size") && int(p.Options) < len(p.Option) &&
			len(value) < 32:
			copy(p.Option[p.Options].Key[:], key)
			copy(p.Option[p.Options].Value[:], value)
			p.Options++
		default:
			return p, fmt.Errorf("mount of %s has the option %q", m.Destination, o)
		}
	}
	return p, nil
}

// bytes returns the plan as place.c reads it.
func (p *plan) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

// failure says where the program came to its end; nil when it came to no end before the last step.
func failure(f *os.File, s *specs.Spec) error {
	st, err := readState(f)
	if err != nil {
		return err
	}
	name := "start"
	if st.Step >= 1 && int(st.Step) <= len(stepNames) {
		name = stepNames[st.Step-1]
	}
	if s != nil {
		name += subject(s, name, int(st.Index))
	}
	if st.Error == 0 {
		return fmt.Errorf("%s: the process was killed", name)
	}
	return fmt.Errorf("%s: %w", name, unix.Errno(st.Error))
}

func readState(f *os.File) (st state, err error) {
	var raw [unsafe.Sizeof(state{})]byte
	if _, err = f.ReadAt(raw[:], 0); err == nil {
		_, err = binary.Decode(raw[:], binary.NativeEndian, &st)
	}
	return st, err
}

// subject says which of several things a step was about.
func subject(s *specs.Spec, step string, i int) string {
	switch {
	case step == "mount" && i < len(s.Mounts):
		return " " + s.Mounts[i].Destination
	case step == "set sysctl" && i < len(s.Linux.Sysctl):
		return " " + sysctlNames(s)[i]
	case step == "set a resource limit" && i < len(s.Process.Rlimits):
		return " " + s.Process.Rlimits[i].Type
	case step == "make device" || step == "join the cgroup":
		return " " + strconv.Itoa(i)
	}
	return ""
}
