// Package capability has the names of the kernel's capabilities and the sets of them; it reads
// nothing.
package capability

import (
	"slices"
	"strings"
)

// names by number (linux/capability.h).
var names = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
	"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// Default are the fourteen capabilities that a container has when its request names none, as in
// Docker and containerd.
var Default = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// Known returns the names up to number last, which is what /proc/sys/kernel/cap_last_cap says.
// Numbers newer than this package are left out.
func Known(last int) []string {
	n := min(max(last+1, 0), len(names))
	return slices.Clone(names[:n])
}

// Of returns the names of the bits that are set in mask, such as CapBnd of /proc/self/status.
func Of(mask uint64) []string {
	var set []string
	for i, name := range names {
		if mask&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	return set
}

// All is the name with which a request asks for every capability.
const All = "ALL"

// Name turns "net_admin" and "cap_net_admin" into "CAP_NET_ADMIN", and "all" into "ALL".
func Name(s string) string {
	s = strings.ToUpper(s)
	if s == All || strings.HasPrefix(s, "CAP_") {
		return s
	}
	return "CAP_" + s
}

// HasAll is true for a list in which "ALL" occurs.
func HasAll(list []string) bool {
	return slices.ContainsFunc(list, func(n string) bool { return Name(n) == All })
}

// Set is a set of capabilities.
type Set map[string]bool

// Add adds capabilities.
func (s Set) Add(list []string) {
	for _, n := range list {
		s[n] = true
	}
}

// Remove removes capabilities, whose names may be in any form.
func (s Set) Remove(list []string) {
	for _, n := range list {
		delete(s, Name(n))
	}
}

// List returns the set in the kernel's order.
func (s Set) List() []string {
	var list []string
	for _, n := range names {
		if s[n] {
			list = append(list, n)
		}
	}
	return list
}
