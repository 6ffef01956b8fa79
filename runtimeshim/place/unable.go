package place

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/runtimeshim"
)

// Parse reads a spec. An error if it has a field that this program does not know.
func Parse(config []byte) (*specs.Spec, error) {
	d := json.NewDecoder(bytes.NewReader(config))
	d.DisallowUnknownFields()
	s := &specs.Spec{}
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	return s, nil
}

// Unable returns why the process of this spec must be started by an OCI runtime; "" if this package
// can do it. It removes from a copy of the spec what this package does, and names what is left.
func Unable(s *specs.Spec) string {
	if s.Process == nil || s.Process.Capabilities == nil || s.Root == nil || s.Linux == nil || s.Linux.Resources == nil {
		return "part of the spec is missing"
	}
	rest := *s
	process, root, linux := *s.Process, *s.Root, *s.Linux
	rest.Process, rest.Root, rest.Linux = &process, &root, &linux
	rest.Version, rest.Annotations = "", nil
	for _, check := range []func(s, rest *specs.Spec) string{
		checkProcess, checkRlimits, checkRoot, checkHostname, checkNamespaces, checkMounts, checkSysctls, checkResources,
		checkSeccomp,
	} {
		if why := check(s, &rest); why != "" {
			return why
		}
	}
	return leftover(reflect.ValueOf(rest), "spec")
}

// checkProcess takes a process that has no capability and can get none.
func checkProcess(s, rest *specs.Spec) string {
	p := s.Process
	text := strings.Join(slices.Concat(p.Args, p.Env), " ")
	names := variables(p.Env)
	switch {
	case !p.NoNewPrivileges:
		return "process.noNewPrivileges is false"
	case p.Cwd != "/":
		return "process.cwd is not /"
	case len(p.Args) == 0 || len(p.Args) > maxWords || !strings.HasPrefix(p.Args[0], "/"):
		return "process.args"
	case len(text)+maxWords > maxText || strings.ContainsRune(text, 0):
		return "process.args or process.env is too long"
	case len(p.Env) > maxWords || !slices.Contains(names, "HOME") ||
		len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(p.Env):
		return "process.env" // the runtime adds HOME, and removes what is there twice
	case len(p.User.AdditionalGids) > maxGroups:
		return "process.user.additionalGids is too long"
	case !validProfile(p.ApparmorProfile):
		return "process.apparmorProfile"
	case p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000):
		return "process.oomScoreAdj"
	}
	r := rest.Process
	r.NoNewPrivileges, r.Cwd, r.Args, r.Env, r.OOMScoreAdj = false, "", nil, nil, nil
	r.ApparmorProfile = ""
	r.User.UID, r.User.GID, r.User.AdditionalGids = 0, 0, nil
	return ""
}

func checkRlimits(s, rest *specs.Spec) string {
	limits := s.Process.Rlimits
	if len(limits) > maxLimits {
		return "process.rlimits is too long"
	}
	for i, l := range limits {
		if _, known := limitNumbers[l.Type]; !known || l.Soft > l.Hard {
			return "process.rlimits: " + l.Type
		}
		if slices.ContainsFunc(limits[:i], func(o specs.POSIXRlimit) bool { return o.Type == l.Type }) {
			return "process.rlimits has one twice"
		}
	}
	rest.Process.Rlimits = nil
	return ""
}

// variables returns the names of variables that have a value.
func variables(env []string) []string {
	var names []string
	for _, v := range env {
		if name, _, ok := strings.Cut(v, "="); ok && name != "" {
			names = append(names, name)
		}
	}
	return names
}

func checkRoot(s, rest *specs.Spec) string {
	if !strings.HasPrefix(s.Root.Path, "/") || len(s.Root.Path) > maxRoot || strings.ContainsRune(s.Root.Path, 0) {
		return "root.path"
	}
	if !s.Root.Readonly {
		return "root.readonly is false"
	}
	rest.Root.Path, rest.Root.Readonly = "", false
	return ""
}

func checkHostname(s, rest *specs.Spec) string {
	if s.Hostname != "" && (!hasNamespace(s, specs.UTSNamespace) || len(s.Hostname) > maxHostname) {
		return "hostname"
	}
	rest.Hostname = ""
	return ""
}

// checkNamespaces takes new namespaces, and network and user namespaces that exist.
func checkNamespaces(s, rest *specs.Spec) string {
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range s.Linux.Namespaces {
		joined := n.Type == specs.NetworkNamespace || n.Type == specs.UserNamespace
		if _, known := cloneFlags[n.Type]; !known && !joined || seen[n.Type] || joined != (n.Path != "") {
			return "linux.namespaces: " + string(n.Type)
		}
		seen[n.Type] = true
	}
	if !seen[specs.MountNamespace] {
		return "linux.namespaces has no mount namespace"
	}
	rest.Linux.Namespaces = nil
	return ""
}

func hasNamespace(s *specs.Spec, t specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
}

// checkMounts takes a proc at /proc and a tmpfs at /dev, in this order: the program fills /dev.
func checkMounts(s, rest *specs.Spec) string {
	want := []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/dev", Type: "tmpfs"}}
	if len(s.Mounts) != len(want) {
		return "mounts are not /proc and /dev"
	}
	for i, m := range s.Mounts {
		if m.Destination != want[i].Destination || m.Type != want[i].Type || m.Source != m.Type {
			return "mounts are not /proc and /dev"
		}
		if _, err := mountOf(m); err != nil {
			return err.Error()
		}
		m.Destination, m.Type, m.Source, m.Options = "", "", "", nil
		if why := leftover(reflect.ValueOf(m), "mounts"); why != "" {
			return why
		}
	}
	rest.Mounts = nil
	return ""
}

// ipcSysctls belong to the IPC namespace, beside those that begin with fs.mqueue.
var ipcSysctls = []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
	"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}

// checkSysctls takes those of a namespace that is not the host's.
func checkSysctls(s, rest *specs.Spec) string {
	if len(s.Linux.Sysctl) > maxSysctls {
		return "linux.sysctl is too long"
	}
	for name, value := range s.Linux.Sysctl {
		var of specs.LinuxNamespaceType
		switch {
		case strings.HasPrefix(name, "net."):
			of = specs.NetworkNamespace
		case strings.HasPrefix(name, "fs.mqueue."), slices.Contains(ipcSysctls, name):
			of = specs.IPCNamespace
		}
		if of == "" || !hasNamespace(s, of) || !sysctlName.MatchString(name) || len(name) > maxSysctlName {
			return "linux.sysctl: " + name
		}
		if value == "" || len(value) > maxSysctlValue || strings.ContainsRune(value, 0) {
			return "linux.sysctl: value of " + name
		}
	}
	rest.Linux.Sysctl = nil
	return ""
}

// sysctlName is a name whose dots stand between folders. With slashes it would mean something else.
var sysctlName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$`)

// checkResources takes no device but those that every process has, and CPU shares.
func checkResources(s, rest *specs.Spec) string {
	r := *s.Linux.Resources
	if r.CPU == nil || r.CPU.Shares == nil || *r.CPU.Shares == 0 {
		return "linux.resources.cpu.shares is missing"
	}
	if none := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}; !reflect.DeepEqual(r.Devices, none) {
		return "linux.resources.devices"
	}
	if p, dir := s.Linux.CgroupsPath, runtimeshim.CgroupOf(s.Linux.CgroupsPath); dir == "" || dir == "/" ||
		!inScope(s) && dir != p {
		return "linux.cgroupsPath"
	}
	cpu := *r.CPU
	cpu.Shares, r.Devices, r.CPU = nil, nil, &cpu
	rest.Linux.Resources, rest.Linux.CgroupsPath = &r, ""
	return ""
}

// checkSeccomp takes every profile whose filter needs no listener and no flag.
func checkSeccomp(s, rest *specs.Spec) string {
	p := s.Linux.Seccomp
	if p == nil {
		return ""
	}
	notify := p.DefaultAction == specs.ActNotify ||
		slices.ContainsFunc(p.Syscalls, func(c specs.LinuxSyscall) bool { return c.Action == specs.ActNotify })
	switch {
	case p.Flags != nil:
		return "linux.seccomp.flags"
	case p.ListenerPath != "" || p.ListenerMetadata != "" || notify:
		return "linux.seccomp has a listener"
	}
	rest.Linux.Seccomp = nil
	return ""
}

// leftover returns the name of a field that has a value, "" if none has.
func leftover(v reflect.Value, name string) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return ""
		}
		if v.Elem().Kind() != reflect.Struct {
			return name
		}
		return leftover(v.Elem(), name)
	case reflect.Struct:
		for i := range v.NumField() {
			if why := leftover(v.Field(i), name+"."+v.Type().Field(i).Name); why != "" {
				return why
			}
		}
		return ""
	case reflect.Slice, reflect.Map:
		if v.Len() == 0 {
			return ""
		}
	default:
		if v.IsZero() {
			return ""
		}
	}
	return name
}
