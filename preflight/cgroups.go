package preflight

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/sandbox"
)

func lookCgroups(_ context.Context, c config.Config) []Finding {
	return append(lookControllers(), lookDriver(c, sandbox.SystemdRuns()))
}

// lookDriver reports which cgroup driver the daemon will use.
func lookDriver(c config.Config, systemdRuns bool) Finding {
	systemd, err := c.SystemdCgroup(systemdRuns)
	switch {
	case err != nil:
		return Finding{What: "cgroup driver systemd, but systemd is not running", Remedy: err.Error(), Fatal: true}
	case systemd:
		return Finding{What: "cgroup driver systemd"}
	case systemdRuns:
		return Finding{What: "cgroup driver cgroupfs",
			Remedy: "systemd is PID 1 and owns the cgroups: set cgroup_driver to auto or systemd"}
	}
	return Finding{What: "cgroup driver cgroupfs"}
}

func lookControllers() []Finding {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return []Finding{{What: "no cgroups at /sys/fs/cgroup", Remedy: "mount cgroup2 there", Fatal: true}}
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return []Finding{{What: "cgroup v2"}}
	}
	all := []Finding{{What: "cgroup v1", Remedy: "kubelet needs failCgroupV1: false; " +
		"boot with systemd.unified_cgroup_hierarchy=1 for v2"}}
	for _, controller := range []string{"memory", "cpu", "cpuacct", "cpuset", "devices", "freezer", "pids"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + controller); err != nil {
			all = append(all, Finding{What: "no cgroup controller " + controller,
				Remedy: "mount it below /sys/fs/cgroup", Fatal: controller == "memory" || controller == "devices"})
		}
	}
	return all
}
