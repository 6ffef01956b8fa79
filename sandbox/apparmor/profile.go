package apparmor

import (
	"fmt"
	"os"
	"strings"
)

// Default is the name of the profile of containers that ask for RuntimeDefault, or for nothing.
const Default = "cribox-default"

// abi pins the features of AppArmor that the profile is written for. Without it a newer parser
// mediates what the text says nothing of, and what is said nothing of is denied: user namespaces,
// POSIX message queues, Unix sockets.
const abi = "/etc/apparmor.d/abi/3.0"

// Text returns the default profile. Whoever is confined by it has the file system, network and
// capabilities that container and mounts give, and cannot change the kernel: no writes to /proc and
// /sys beyond its own processes, cgroup and IPC limits, whatever is mounted there and however; no
// mounts. Processes of the profile may trace and signal one another; signals come from outside by
// unconfined, by OCI runtimes that a distribution confines, and by sender, the profile that the
// daemon runs in, "" for none.
//
// A profile is a union of what is allowed, less what is denied: the file rules allow all, and the
// denials say in patterns which parts of /proc and /sys are meant. AppArmor has no exceptions from
// a denial, so each pattern spells out the beginnings of names that it spares.
func Text(sender string) string {
	var b strings.Builder
	if _, err := os.Stat(abi); err == nil {
		b.WriteString("abi <abi/3.0>,\n\n")
	}
	peers := []string{"unconfined", "runc", "crun", "cribox"}
	if sender != "" && sender != Default {
		peers = append(peers, fmt.Sprintf("%q", sender))
	}
	fmt.Fprintf(&b, "profile %s flags=(attach_disconnected,mediate_deleted) {\n", Default)
	b.WriteString("  network,\n  capability,\n  file,\n  umount,\n\n")
	for _, peer := range peers {
		fmt.Fprintf(&b, "  signal (receive) peer=%s,\n", peer)
	}
	fmt.Fprintf(&b, "  signal (send, receive) peer=%s,\n", Default)
	fmt.Fprintf(&b, "  ptrace (trace, tracedby, read, readby) peer=%s,\n\n", Default)
	for _, d := range denials {
		fmt.Fprintf(&b, "  deny %s,\n", d)
	}
	b.WriteString("}\n")
	return b.String()
}

// denials by path: w is write, l link, k lock, x execute, r read.
var denials = []string{
	"mount",
	"remount",
	"pivot_root",

	// Files of /proc itself, and folders that are no process: whose name begins with neither a
	// digit nor "sys".
	"/proc/* w",
	"/proc/[^1-9s]*/** w",
	"/proc/s[^y]*/** w",
	"/proc/sy[^s]*/** w",
	"/proc/sysvipc/** w",

	// Of /proc/sys only kernel/shm*, the limits of the IPC namespace, are spared.
	"/proc/sys/[^k]** w",
	"/proc/sys/k[^e]** w",
	"/proc/sys/kernel/[^s]** w",
	"/proc/sys/kernel/s[^h]** w",
	"/proc/sys/kernel/sh[^m]** w",

	// What shows or resets the machine is not even read.
	"/proc/sysrq-trigger rwklx",
	"/proc/kcore rwklx",
	"/proc/kmem rwklx",
	"/proc/mem rwklx",

	// Of /sys only fs/cgroup is spared.
	"/sys/[^f]** wklx",
	"/sys/f[^s]** wklx",
	"/sys/fs/[^c]** wklx",
	"/sys/fs/c[^g]** wklx",
	"/sys/firmware/** rwklx",
	"/sys/devices/virtual/powercap/** rwklx",
	"/sys/kernel/security/** rwklx",
}
