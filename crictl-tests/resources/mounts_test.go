package resources

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

const (
	hostToContainer = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	bidirectional   = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

// disk mounts a tmpfs in a folder of the test's own, with a propagation; it goes with the test.
func disk(d *harness.Daemon, name string, propagation uintptr) string {
	d.Helper()
	path := filepath.Join(d.Dir, name)
	d.Must(os.Mkdir(path, 0o755))
	d.Must(syscall.Mount("tmpfs", path, "tmpfs", 0, "size=1m"))
	d.Cleanup(func() { _ = syscall.Unmount(path, syscall.MNT_DETACH) })
	d.Must(syscall.Mount("", path, "", propagation, ""))
	d.Must(os.WriteFile(filepath.Join(path, "file"), []byte("x\n"), 0o644))
	return path
}

// below mounts another one in it.
func below(d *harness.Daemon, disk, name string) {
	d.Helper()
	path := filepath.Join(disk, name)
	d.Must(os.MkdirAll(path, 0o755))
	d.Must(syscall.Mount("tmpfs", path, "tmpfs", 0, "size=1m"))
	d.Must(os.WriteFile(filepath.Join(path, "deep"), []byte("deep\n"), 0o644))
}

func isMounted(t testing.TB, path string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(mounts), " "+path+" ")
}

// peers returns the number of the peer group that a mount of the host is in.
func peers(t testing.TB, path string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[4] == path {
			return strings.TrimPrefix(f[6], "shared:")
		}
	}
	t.Fatalf("%s is not mounted", path)
	return ""
}

// TestMountPropagation: what is mounted later is seen on the other side exactly where that was asked for.
func TestMountPropagation(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	shared := disk(d, "shared", syscall.MS_SHARED)
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.Run(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths = true, nil, nil
	}), harness.Mounted(
		&cri.Mount{HostPath: shared, ContainerPath: "/private"},
		&cri.Mount{HostPath: shared, ContainerPath: "/slave", Propagation: hostToContainer},
		&cri.Mount{HostPath: shared, ContainerPath: "/shared", Propagation: bidirectional},
	))
	lines, group := c.MountLines(), peers(t, shared)
	for path, want := range map[string][2]bool{"/private": {false, false}, "/slave": {false, true}, "/shared": {true, false}} {
		words := strings.Fields(lines[path])
		if got := [2]bool{slices.Contains(words, "shared:"+group), slices.Contains(words, "master:"+group)}; got != want {
			t.Errorf("%s is mounted %q, the host's peer group is %s", path, lines[path], group)
		}
	}
	below(d, shared, "from-host")
	for path, want := range map[string]bool{"/private": false, "/slave": true, "/shared": true} {
		if r := c.MayFail("cat", path+"/from-host/deep"); (r.Code == 0) != want {
			t.Errorf("a mount of the host is seen in %s: %t, want %t", path, !want, want)
		}
	}
	for path, want := range map[string]bool{"private": false, "slave": false, "shared": true} {
		c.Exec("sh", "-c", "mkdir /"+path+"/of-"+path+" && mount -t tmpfs none /"+path+"/of-"+path)
		if got := isMounted(t, filepath.Join(shared, "of-"+path)); got != want {
			t.Errorf("a mount of the container in /%s is on the host: %t, want %t", path, got, want)
		}
	}
	c.Remove()
}

// TestMountPropagationRefused: a promise that the source cannot keep.
func TestMountPropagationRefused(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	private, slave := disk(d, "private", syscall.MS_PRIVATE), disk(d, "slave", syscall.MS_SHARED)
	d.Must(syscall.Mount("", slave, "", syscall.MS_SLAVE, "")) // of nobody: private again
	d.Pulled(harness.Busybox)
	p := d.RunPod()
	before := d.Ledger()
	for _, m := range []*cri.Mount{
		{HostPath: private, ContainerPath: "/v", Propagation: hostToContainer}, {HostPath: private, ContainerPath: "/v", Propagation: bidirectional},
		{HostPath: slave, ContainerPath: "/v", Propagation: bidirectional}, {HostPath: filepath.Join(private, "file"), ContainerPath: "/v", Propagation: bidirectional},
	} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Mounted(m)))
		harness.WantCode(t, err, codes.FailedPrecondition, "mount /v", m.HostPath)
	}
	d.WantFlat(before)
}

// TestReadOnlyMounts: read-only is about one mount, recursively read-only about all below it.
func TestReadOnlyMounts(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	disk := disk(d, "disk", syscall.MS_PRIVATE)
	below(d, disk, "sub")
	c := d.RunPod().Run(harness.Idle(), harness.Mounted(
		&cri.Mount{HostPath: disk, ContainerPath: "/rw"},
		&cri.Mount{HostPath: disk, ContainerPath: "/ro", Readonly: true},
		&cri.Mount{HostPath: disk, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
		&cri.Mount{HostPath: disk, ContainerPath: "/rro-noexec", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}},
	))
	for path, want := range map[string]bool{"/rw": true, "/rw/sub": true, "/ro": false, "/ro/sub": true, "/rro": false, "/rro/sub": false, "/rro-noexec/sub": false} {
		if r := c.MayFail("touch", path+"/new"); (r.Code == 0) != want || !want && !strings.Contains(r.Stderr, "Read-only") {
			t.Errorf("touch in %s: %+v, it should work: %t", path, r, want)
		}
	}
	if got := c.MountLines()["/rro-noexec"]; !strings.Contains(got, "noexec") || !strings.HasPrefix(got, "ro") {
		t.Errorf("/rro-noexec is mounted %q", got)
	}
}

// TestMountOptions: every option that is taken is there, and no other, whether or not the mount is read-only.
func TestMountOptions(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	disk := disk(d, "disk", syscall.MS_PRIVATE)
	d.Must(os.WriteFile(filepath.Join(disk, "tool"), []byte("#!/bin/sh\necho ran\n"), 0o755))
	if r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{}); err != nil || !r.Features.GetMountOptions() {
		t.Errorf("a kubelet will not send mount options: %v, %v", r.GetFeatures(), err)
	}
	words := []string{"noexec", "nodev", "nosuid", "noatime", "nodiratime", "nosymfollow"}
	asked := []*cri.Mount{{HostPath: disk, ContainerPath: "/none"}, {HostPath: disk, ContainerPath: "/all", MountOptions: words, Readonly: true}}
	for _, w := range words {
		asked = append(asked, &cri.Mount{HostPath: disk, ContainerPath: "/" + w, MountOptions: []string{w}})
	}
	c := d.RunPod().Run(harness.Idle(), harness.Mounted(asked...))
	lines := c.MountLines()
	for _, m := range asked {
		options := strings.Split(strings.Fields(lines[m.ContainerPath])[0], ",")
		for _, w := range words {
			want := slices.Contains(m.MountOptions, w)
			if got := slices.Contains(options, w); got != want {
				t.Errorf("%s is mounted %q, it should have %s: %t", m.ContainerPath, options, w, want)
			}
		}
		if ro := slices.Contains(options, "ro"); ro != m.Readonly {
			t.Errorf("%s is mounted %q", m.ContainerPath, options)
		}
	}
	for path, want := range map[string]bool{"/none": true, "/nosuid": true, "/noexec": false, "/all": false} {
		if r := c.MayFail(path + "/tool"); (r.Code == 0) != want {
			t.Errorf("a program in %s: %+v, it should run: %t", path, r, want)
		}
	}
}

// TestMountSources: a link is followed on the host, a folder that is bound brings what is mounted below it, and where the host has no SELinux
// relabeling is nothing to do.
func TestMountSources(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	disk := disk(d, "disk", syscall.MS_PRIVATE)
	below(d, disk, "sub")
	link := filepath.Join(d.Dir, "link")
	d.Must(os.Symlink(disk, link))
	mounts := []*cri.Mount{{HostPath: link, ContainerPath: "/linked"}, {HostPath: filepath.Join(link, "file"), ContainerPath: "/file", Readonly: true}}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		mounts = append(mounts, &cri.Mount{HostPath: disk, ContainerPath: "/relabelled", SelinuxRelabel: true})
	}
	c := d.RunPod().Run(harness.Idle(), harness.Mounted(mounts...))
	if got := c.Exec("cat", "/linked/file", "/linked/sub/deep", "/file"); got != "x\ndeep\nx\n" {
		t.Errorf("through links: %q", got)
	}
	for i, m := range c.Status().Mounts {
		harness.WantEqual(t, "a mount of the status", m, mounts[i])
	}
}

// TestSubPathOfAFolder: a kubelet tells the sub path of every volume, of a config map's too, where host_path leads to it already.
func TestSubPathOfAFolder(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	file := filepath.Join(t.TempDir(), "color")
	d.Must(os.WriteFile(file, []byte("blue"), 0o644))
	c := d.RunPod().Run(harness.Idle(), harness.Mounted(&cri.Mount{ContainerPath: "/only/color", HostPath: file, ImageSubPath: "../color"}))
	if got := c.Exec("cat", "/only/color"); got != "blue" {
		t.Errorf("the file holds %q", got)
	}
}
