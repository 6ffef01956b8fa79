package spec

import (
	"reflect"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/signals"
)

// TestPidsBySystemd: where no limit is asked for, systemd is told so, or it would set its own.
func TestPidsBySystemd(t *testing.T) {
	for _, row := range []struct {
		systemd bool
		limit   int64
		want    *specs.LinuxPids
	}{{false, 0, nil}, {true, 0, &specs.LinuxPids{Limit: new(int64(-1))}}, {true, 7, &specs.LinuxPids{Limit: new(int64(7))}}} {
		h := aHost()
		h.SystemdCgroup, h.PidsLimit = row.systemd, row.limit
		p := aPod()
		p.Config.Linux.CgroupParent = ""
		if got := mustContainer(t, h, p, aContainer()).Linux.Resources.Pids; !reflect.DeepEqual(got, row.want) {
			t.Errorf("%+v: %+v", row, got)
		}
	}
}

func TestCgroupsPath(t *testing.T) {
	for _, r := range []struct {
		systemd      bool
		parent, want string
	}{
		{false, "/kubepods/podx", "/kubepods/podx/ctr1"},
		{false, "kubepods/podx/", "/kubepods/podx/ctr1"},
		{false, "", "/cribox/ctr1"},
		{false, "/", "/ctr1"},
		{true, "kubepods-podx.slice", "kubepods-podx.slice:cribox:ctr1"},
		{true, "/kubepods.slice/kubepods-podx.slice", "kubepods-podx.slice:cribox:ctr1"},
		{true, "", "system.slice:cribox:ctr1"},
		{true, "-.slice", "-.slice:cribox:ctr1"},
	} {
		h, p := aHost(), aPod()
		h.SystemdCgroup, p.Config.Linux.CgroupParent = r.systemd, r.parent
		if err := ValidatePod(p.Config, h); err != nil {
			t.Error(err)
		}
		if got := mustContainer(t, h, p, aContainer()).Linux.CgroupsPath; got != r.want {
			t.Errorf("%+v became %s", r, got)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, r := range []struct {
		cri   runtimeapi.Signal
		image string
		want  syscall.Signal
	}{
		{0, "", syscall.SIGTERM}, {0, "SIGQUIT", syscall.SIGQUIT}, {0, "quit", syscall.SIGQUIT}, {0, "9", syscall.SIGKILL}, {0, "SIGRTMIN+3", 37},
		{0, "RTMAX-1", 63}, {0, "SIGRTMIN", 34}, {0, "SIGPOLL", syscall.SIGIO}, {23, "SIGQUIT", syscall.SIGTERM}, {29, "", syscall.SIGUSR1}, {5, "", syscall.SIGCHLD},
		{12, "", syscall.SIGABRT}, {34, "", syscall.SIGXFSZ}, {35, "", 34}, {50, "", 49}, {51, "", 50}, {65, "", 64}, {20, "", syscall.SIGSTKFLT},
	} {
		if got, err := signals.Stop(&runtimeapi.ContainerConfig{StopSignal: r.cri}, r.image); err != nil || got != r.want {
			t.Errorf("%d, %q: %d, %v, want %d", r.cri, r.image, got, err, r.want)
		}
	}
	for _, bad := range []string{"SIGNONSENSE", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMAX+1", "SIGRTMIN-1", "SIGRTMIN3", "SIGRTMIN+", "SIGRTMIN+x", "1.5"} {
		if got, err := signals.Stop(nil, bad); err != nil || got != syscall.SIGTERM {
			t.Errorf("%q of an image: %d, %v", bad, got, err)
		}
		c := aContainer()
		c.Image.Config.StopSignal = bad
		if _, notes, err := ForContainer(aHost(), aPod(), c); err != nil || len(notes) != 1 || notes[0].Field != "stop_signal" {
			t.Errorf("%q of an image: %v, %v", bad, notes, err)
		}
	}
	// The API renames its signals; the numbers, and what they mean, stay.
	for n := range runtimeapi.Signal_name {
		sig, err := signals.Stop(&runtimeapi.ContainerConfig{StopSignal: runtimeapi.Signal(n)}, "")
		if err != nil {
			t.Errorf("signal %d of the API: %v", n, err)
			continue
		}
		again, err := signals.Stop(&runtimeapi.ContainerConfig{StopSignal: signals.CRI(sig)}, "")
		if err != nil || again != sig {
			t.Errorf("%d is %d, back as %d is %d", n, sig, signals.CRI(sig), again)
		}
	}
}

func TestImageVolumes(t *testing.T) {
	c := aContainer()
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/taken/"}}
	// SEC-09
	c.Image.Config.Volumes = map[string]struct{}{
		"/data": {}, "relative": {}, "/../../../../etc": {}, "/a/../../etc": {}, "/taken": {}, "/": {}, "": {}, "/proc": {}, "/proc/x": {}, "/sys/y": {}, "/dev/shm": {}, "/x\x00": {}, "/data/": {},
	}
	got := ImageVolumes(c.Image, c.Config)
	if want := []string{"/data", "/etc", "/relative"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := ImageVolumes(ocispec.Image{}, nil); got != nil {
		t.Errorf("%q out of nothing", got)
	}
}

func TestMountsOfTheRequestWin(t *testing.T) {
	c := aContainer()
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/dev", HostPath: "/dev"}, {ContainerPath: "/etc/hosts", HostPath: "/h"}, {ContainerPath: "/sys/", HostPath: "/sys"}}
	c.Mounts = []Mount{{Source: "/dev"}, {Source: "/h"}, {Source: "/sys"}}
	seen := map[string]string{}
	last := 0
	for _, m := range mustContainer(t, aHost(), aPod(), c).Mounts {
		if _, twice := seen[m.Destination]; twice {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		seen[m.Destination] = m.Source
		if depth(m.Destination) < last {
			t.Errorf("%s comes after something deeper", m.Destination)
		}
		last = depth(m.Destination)
	}
	want := map[string]string{
		"/proc": "proc", "/dev": "/dev", "/sys": "/sys", "/sys/fs/cgroup": "cgroup", "/etc/hosts": "/h", "/dev/shm": aPod().ShmPath,
		"/etc/hostname": aPod().HostnamePath, "/etc/resolv.conf": aPod().ResolvConfPath,
	}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("got %v\nwant %v", seen, want)
	}
}

func TestDeviceRules(t *testing.T) {
	c := aContainer()
	c.Devices = []Device{
		{ContainerPath: "/dev/fifo", Type: "p", Permissions: "rw"},
		{ContainerPath: "/dev/b", Type: "b", Major: 7, Minor: 1, Mode: 0o640, UID: 1, GID: 6, Permissions: "rm"},
	}
	s := mustContainer(t, aHost(), aPod(), c)
	want := []specs.LinuxDeviceCgroup{denyAll(), {Allow: true, Type: "b", Major: new(int64(7)), Minor: new(int64(1)), Access: "rm"}}
	if !reflect.DeepEqual(s.Linux.Resources.Devices, want) || len(s.Linux.Devices) != 2 {
		t.Errorf("%+v, %+v", s.Linux.Resources.Devices, s.Linux.Devices)
	}
	for field, dev := range map[string]Device{
		"permissions": {ContainerPath: "/dev/x", Type: "c", Permissions: "xyz"}, "container_path": {ContainerPath: "x", Type: "c", Permissions: "r"},
	} {
		c.Devices = []Device{dev}
		_, _, err := ForContainer(aHost(), aPod(), c)
		wantInvalid(t, err, field)
	}
	c.Devices = []Device{{ContainerPath: "/dev/x", Type: "a", Permissions: "rwm"}}
	if _, _, err := ForContainer(aHost(), aPod(), c); err == nil {
		t.Error("a device of every type at once")
	}
}

func TestNetworkNamespaceMustFit(t *testing.T) {
	p := aPod()
	p.NetNS = ""
	if _, _, err := ForPod(aHost(), p); err == nil {
		t.Error("a pod with its own network and no namespace would run in the host's")
	}
	if _, _, err := ForContainer(aHost(), p, aContainer()); err == nil {
		t.Error("so would its containers")
	}
	p = aPod()
	p.PauseNS = ""
	if _, _, err := ForContainer(aHost(), p, aContainer()); err == nil {
		t.Error("a container without a pod")
	}
	c := aContainer()
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b"}}
	if _, _, err := ForContainer(aHost(), aPod(), c); err == nil {
		t.Error("a mount that nobody resolved")
	}
	c = aContainer()
	c.security().NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "x"}
	if _, _, err := ForContainer(aHost(), aPod(), c); err == nil {
		t.Error("a target without a process")
	}
}
