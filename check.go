package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox"
)

// finding is what one look at the host found. Without a remedy all is well.
type finding struct {
	what   string // is there, or is missing
	remedy string
	fatal  bool // no pod runs without it
}

// checkHost prints what this host lacks to run pods, each with its remedy. It is an error when no pod could run.
func checkHost(ctx context.Context, c Config, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fatal := false
	for _, look := range []func(context.Context, Config) []finding{
		lookRoot, lookKernel, lookAppArmor, lookSELinux, lookCgroups, lookRuntimes, lookOverlay, lookAbilities, lookUserNamespaces, lookNetwork,
	} {
		for _, f := range look(ctx, c) {
			word := "ok     "
			switch {
			case f.fatal:
				word, fatal = "MISSING", true
			case f.remedy != "":
				word = "notice "
			}
			fmt.Fprintf(out, "%s  %s\n", word, f.what)
			if f.remedy != "" {
				fmt.Fprintf(out, "         remedy: %s\n", f.remedy)
			}
		}
	}
	if fatal {
		return errors.New("this host cannot run pods yet")
	}
	return nil
}

func lookRoot(context.Context, Config) []finding {
	if os.Geteuid() != 0 {
		return []finding{{what: "cribox does not run as root", remedy: "start it as root", fatal: true}}
	}
	return nil
}

func lookKernel(context.Context, Config) []finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []finding{{what: "kernel: " + err.Error(), remedy: "run on Linux", fatal: true}}
	}
	all := []finding{{what: "kernel " + unix.ByteSliceToString(u.Release[:])}}
	for _, ns := range []string{"net", "pid", "ipc", "uts", "mnt"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			all = append(all, finding{what: "no " + ns + " namespaces", remedy: "use a kernel with CONFIG_NAMESPACES", fatal: true})
		}
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		all = append(all, finding{what: "no seccomp filters: profiles will be refused", remedy: "use a kernel with CONFIG_SECCOMP_FILTER"})
	} else {
		all = append(all, finding{what: "seccomp filters"})
	}
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err != nil {
		all = append(all, finding{what: "no pidfd", remedy: "use Linux 5.3 or newer", fatal: true})
	} else {
		unix.Close(fd)
	}
	if major, minor := release(unix.ByteSliceToString(u.Release[:])); major < 6 || major == 6 && minor < 15 {
		all = append(all, finding{what: "exit codes of processes that are not ours cannot be read (PIDFD_GET_INFO)",
			remedy: "with Linux 6.15 or newer no exit code is lost even when the shim is killed"})
	}
	return all
}

func lookAppArmor(context.Context, Config) []finding {
	if !sandbox.HasAppArmor() {
		return []finding{{what: "no AppArmor in this kernel: requests for a profile will be refused"}}
	}
	return []finding{appArmorFinding(sandbox.AppArmorParser())}
}

// appArmorFinding tells whether containers that name no profile will have the default one.
func appArmorFinding(parser string, err error) finding {
	if err != nil {
		return finding{what: "AppArmor without apparmor_parser: containers that name no profile are not confined by one, and RuntimeDefault is refused",
			remedy: "install AppArmor's tools (package apparmor) and restart cribox"}
	}
	return finding{what: "AppArmor, with " + parser + " to load the default profile"}
}

func lookSELinux(_ context.Context, c Config) []finding {
	switch {
	case !sandbox.HasSELinux():
		return nil
	case !c.Containers.SELinux:
		return []finding{{what: "SELinux, and nothing is labelled", remedy: "set selinux = true in [containers], or leave it so on purpose"}}
	}
	return []finding{{what: "SELinux: pods are labelled"}}
}

func release(s string) (major, minor int) {
	if _, err := fmt.Sscanf(s, "%d.%d", &major, &minor); err != nil {
		return 0, 0
	}
	return major, minor
}

func lookCgroups(_ context.Context, c Config) []finding {
	return append(lookControllers(), lookDriver(c, sandbox.SystemdRuns()))
}

// lookDriver tells who will make cgroups.
func lookDriver(c Config, systemdRuns bool) finding {
	systemd, err := c.systemdCgroup(systemdRuns)
	switch {
	case err != nil:
		return finding{what: "no systemd to make cgroups", remedy: err.Error(), fatal: true}
	case systemd:
		return finding{what: "cgroup driver systemd"}
	case systemdRuns:
		return finding{what: "cgroup driver cgroupfs", remedy: "systemd is the first process and owns the cgroups: set cgroup_driver to auto or systemd"}
	}
	return finding{what: "cgroup driver cgroupfs"}
}

func lookControllers() []finding {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return []finding{{what: "no cgroups at /sys/fs/cgroup", remedy: "mount cgroup2 there", fatal: true}}
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return []finding{{what: "cgroup v2"}}
	}
	all := []finding{{what: "cgroup v1", remedy: "kubelet needs failCgroupV1: false; boot with systemd.unified_cgroup_hierarchy=1 for v2"}}
	for _, controller := range []string{"memory", "cpu", "cpuacct", "cpuset", "devices", "freezer", "pids"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + controller); err != nil {
			all = append(all, finding{what: "no cgroup controller " + controller, remedy: "mount it below /sys/fs/cgroup", fatal: controller == "memory" || controller == "devices"})
		}
	}
	return all
}

// What programs say of their versions: runc on --version, a CNI plugin that is asked for nothing.
var (
	runcVersion   = regexp.MustCompile(`(?m)^runc version (\S+)`)
	pluginVersion = regexp.MustCompile(`(?m)^CNI (\S+) plugin v?(\d+)\.(\d+)\.(\d+)`)
)

func lookRuntimes(ctx context.Context, c Config) []finding {
	var all []finding
	for name, r := range c.Runtimes {
		path := program(r.Path)
		b, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			all = append(all, finding{what: fmt.Sprintf("runtime %s: %s: %v", name, path, err), fatal: name == c.DefaultRuntime,
				remedy: runtimeshim.RuncAdvice + ", or set [runtimes." + name + "] path"})
			continue
		}
		what, _, _ := strings.Cut(string(b), "\n")
		f := finding{what: fmt.Sprintf("runtime %s: %s (%s)", name, what, path)}
		if flaw := runcFlaw(b); flaw != "" {
			f.remedy = flaw + "; " + runtimeshim.RuncAdvice
		}
		all = append(all, f, lookFeatures(ctx, name, path))
	}
	return all
}

// lookFeatures asks a runtime what it can do for pods with user namespaces.
func lookFeatures(ctx context.Context, name, path string) finding {
	can, err := runtimeshim.AskFeatures(ctx, path)
	switch {
	case err != nil:
		return finding{what: fmt.Sprintf("runtime %s does not say what it can do: %v", name, err), remedy: "install runc 1.2 or newer for pods with user namespaces"}
	case !can.UserNamespaces || !can.IDMappedMounts:
		return finding{what: "runtime " + name + ": no user namespaces with id-mapped mounts", remedy: "install runc 1.2 or newer"}
	}
	return finding{what: "runtime " + name + ": user namespaces, id-mapped mounts"}
}

// runcFlaw returns the worst that is known of the runc that says this of its version; "" also for what is no runc.
func runcFlaw(says []byte) string {
	m := runcVersion.FindSubmatch(says)
	if m == nil {
		return ""
	}
	return runtimeshim.RuncFlaw(string(m[1]))
}

func lookOverlay(_ context.Context, c Config) []finding {
	if err := imageservice.CheckHost(c.Root); err != nil {
		return []finding{{what: "no overlay on root " + c.Root + ": " + err.Error(), fatal: true,
			remedy: "modprobe overlay, or put root on ext4, xfs or btrfs"}}
	}
	return []finding{{what: "overlay on root " + c.Root}}
}

// lookAbilities tells what a pod may ask for on this machine. What is absent is refused when it is asked for.
func lookAbilities(context.Context, Config) []finding {
	h, err := sandbox.ReadHost()
	if err != nil {
		return []finding{{what: "this machine: " + err.Error(), remedy: "mount /proc", fatal: true}}
	}
	return []finding{
		ability(h.MemorySwapAccounting, "limits of swap", "boot with swapaccount=1"),
		ability(h.RecursiveReadOnly, "recursive read-only mounts", "use Linux 5.12 or newer"),
		ability(h.AppArmor, "AppArmor", ""),
		ability(h.SELinux, "SELinux", ""),
	}
}

// ability is no flaw when it is absent and there is no remedy: a distribution has the one or the other.
func ability(have bool, what, remedy string) finding {
	if have {
		return finding{what: what}
	}
	return finding{what: "no " + what, remedy: remedy}
}

func lookUserNamespaces(_ context.Context, c Config) []finding {
	if err := sandbox.CheckUserNamespaces(c.Root); err != nil {
		return []finding{{what: "no user namespaces for pods: " + err.Error(),
			remedy: "use Linux 6.5 or newer, root on ext4, xfs or btrfs, and user.max_user_namespaces above 0"}}
	}
	return []finding{{what: "user namespaces, images with mapped ids"}}
}

func lookNetwork(ctx context.Context, c Config) []finding {
	all := []finding{lookForwarding("/proc/sys/net/ipv4/ip_forward")}
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		if !hasPlugin(c.Network.BinDirs, plugin) && c.Network.Default {
			all = append(all, finding{what: "no CNI plugin " + plugin + " in " + strings.Join(c.Network.BinDirs, ":"), fatal: true,
				remedy: "install the CNI plugins (Debian: containernetworking-plugins), or set network.bin_dirs"})
		}
	}
	all = append(all, lookPlugins(ctx, c.Network.BinDirs)...)
	all = append(all, lookAdvertisements(ipv6Pods(c), cni.DeafUplinks)...)
	if err := networkReady(ctx, c); err != nil {
		return append(all, finding{what: "no network for pods yet: " + err.Error(),
			remedy: remedyNetwork(c)})
	}
	return append(all, finding{what: "network for pods"})
}

func remedyNetwork(c Config) string {
	if c.Network.Default && c.Network.Subnet == cni.PodCIDR {
		return "the kubelet names the range when the cluster has given the node one"
	}
	return "a network add-on will write one to " + c.Network.ConfDir + ", or set network.default = true"
}

// networkReady looks at the network through folders of its own, with the pod CIDR that was named: a daemon may be using the configured ones.
func networkReady(ctx context.Context, c Config) error {
	scratch, err := os.MkdirTemp("", "cribox-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	instance := c.instance()
	named := cni.PodCIDRFile(c.State)
	c.Root, c.State = filepath.Join(scratch, "root"), filepath.Join(scratch, "state")
	b, err := os.ReadFile(named)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err == nil {
		mine := cni.PodCIDRFile(c.State)
		if err := errors.Join(os.MkdirAll(filepath.Dir(mine), 0o700), os.WriteFile(mine, b, 0o600)); err != nil {
			return err
		}
	}
	network, err := openNetwork(ctx, c, instance)
	if err != nil {
		return err
	}
	return network.Ready()
}

func lookForwarding(path string) finding {
	b, err := os.ReadFile(path)
	if err != nil {
		return finding{what: "whether the host forwards IPv4 cannot be read: " + err.Error(), remedy: "mount /proc"}
	}
	if strings.TrimSpace(string(b)) != "1" {
		return finding{what: "the host does not forward IPv4: pods reach each other but not beyond", remedy: "sysctl -w net.ipv4.ip_forward=1"}
	}
	return finding{what: "IPv4 forwarding"}
}

// ipv6Pods tells whether the host forwards IPv6, or will do so for the default network.
func ipv6Pods(c Config) bool {
	named, err := os.ReadFile(cni.PodCIDRFile(c.State))
	return cni.ForwardsIPv6() || strings.Contains(c.Network.Subnet, ":") || err == nil && strings.Contains(string(named), ":")
}

// lookAdvertisements names uplinks whose IPv6 router is forgotten once the host forwards IPv6 for pods.
func lookAdvertisements(forwards bool, deaf func() ([]string, error)) []finding {
	if !forwards {
		return nil
	}
	links, err := deaf()
	if err != nil {
		return []finding{{what: "how this host learns its IPv6 router cannot be read: " + err.Error(), remedy: "mount /proc, and run as root"}}
	}
	var all []finding
	for _, link := range links {
		key := "net.ipv6.conf." + strings.ReplaceAll(link, ".", "/") + ".accept_ra"
		all = append(all, finding{
			what:   link + " learns its IPv6 router from advertisements; a host that forwards IPv6 for pods ignores them, and loses the router some minutes later",
			remedy: "sysctl -w " + key + "=2, and the same in /etc/sysctl.d; a program that listens in the kernel's place sets it to 0",
		})
	}
	return all
}

// pluginFloors are the first versions of the plugins of the CNI project without a known flaw that pods can make use of.
var pluginFloors = map[string]struct {
	version [3]int
	flaw    string
}{
	"bridge":  {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"ipvlan":  {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"macvlan": {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"ptp":     {[3]int{0, 8, 6}, "a pod can make itself the node's IPv6 router (CVE-2020-10749)"},
	"portmap": {[3]int{1, 9, 0}, "with its nftables backend a pod's host port takes connections that go elsewhere (CVE-2025-67499)"},
}

// lookPlugins names plugins that are known to be flawed. One that does not tell its version is not held against it.
func lookPlugins(ctx context.Context, dirs []string) []finding {
	var all []finding
	for _, plugin := range slices.Sorted(maps.Keys(pluginFloors)) {
		for _, dir := range dirs {
			path := filepath.Join(dir, plugin)
			if !hasPlugin([]string{dir}, plugin) {
				continue
			}
			cmd := exec.CommandContext(ctx, path)
			cmd.Env, cmd.WaitDelay = []string{}, time.Second // without CNI_COMMAND it says who it is
			says, _ := cmd.CombinedOutput()                  // whatever it says besides
			if flaw := pluginFlaw(plugin, says); flaw != "" {
				what, _, _ := strings.Cut(string(says), "\n")
				all = append(all, finding{what: what + " (" + path + ")", remedy: flaw})
			}
			break // the folders behind are not looked into for it
		}
	}
	return all
}

// pluginFlaw returns what is known of the plugin that says this of itself, and what to do about it; "" when that is nothing.
func pluginFlaw(plugin string, says []byte) string {
	floor, known := pluginFloors[plugin]
	m := pluginVersion.FindSubmatch(says)
	if m == nil || !known || string(m[1]) != plugin {
		return ""
	}
	var have [3]int
	for i := range have {
		have[i], _ = strconv.Atoi(string(m[i+2])) // digits
	}
	if slices.Compare(have[:], floor.version[:]) >= 0 {
		return ""
	}
	return fmt.Sprintf("%s; install the CNI plugins %d.%d.%d or newer", floor.flaw, floor.version[0], floor.version[1], floor.version[2])
}

func hasPlugin(dirs []string, name string) bool {
	for _, d := range dirs {
		if info, err := os.Stat(filepath.Join(d, name)); err == nil && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}
