package preflight

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/config"
)

func lookKernel(context.Context, config.Config) []Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []Finding{{What: "kernel: " + err.Error(), Remedy: "run on Linux", Fatal: true}}
	}
	all := []Finding{{What: "kernel " + unix.ByteSliceToString(u.Release[:])}}
	for _, ns := range []string{"net", "pid", "ipc", "uts", "mnt"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			all = append(all, Finding{What: "no " + ns + " namespaces", Remedy: "use a kernel with CONFIG_NAMESPACES",
				Fatal: true})
		}
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		all = append(all, Finding{What: "no seccomp filters: containers with a seccomp profile will be refused",
			Remedy: "use a kernel with CONFIG_SECCOMP_FILTER"})
	} else {
		all = append(all, Finding{What: "seccomp filters"})
	}
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err != nil {
		all = append(all, Finding{What: "no pidfd", Remedy: "use Linux 5.3 or newer", Fatal: true})
	} else {
		unix.Close(fd)
	}
	if major, minor := release(unix.ByteSliceToString(u.Release[:])); major < 6 || major == 6 && minor < 15 {
		all = append(all, Finding{What: "the kernel cannot report exit codes of processes that are not children " +
			"(PIDFD_GET_INFO)",
			Remedy: "use Linux 6.15 or newer to keep exit codes even when the shim is killed"})
	}
	return all
}

func release(s string) (major, minor int) {
	if _, err := fmt.Sscanf(s, "%d.%d", &major, &minor); err != nil {
		return 0, 0
	}
	return major, minor
}
