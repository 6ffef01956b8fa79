package security

import (
	"archive/tar"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

func volumes(places ...string) v1.Config {
	c := v1.Config{Volumes: map[string]struct{}{}}
	for _, p := range places {
		c.Volumes[p] = struct{}{}
	}
	return c
}

// TestSEC09Volumes: what an image calls a volume is filled from the image and nowhere else.
func TestSEC09Volumes(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	host := plantCanary(d)
	for i, row := range []struct {
		volume string
		links  []fixture.Entry
	}{
		{"/../../../../../../../.." + host.dir, nil},
		{host.up("folder"), nil},
		{"/a/../../../../.." + host.dir, nil},
		{host.dir, nil},
		{"/vol", []fixture.Entry{harness.SymlinkEntry("vol", host.dir)}},
		{"/vol", []fixture.Entry{harness.SymlinkEntry("vol", host.up("folder"))}},
		{"/vol/folder", []fixture.Entry{harness.SymlinkEntry("a", "b"), harness.SymlinkEntry("b", "/"), harness.SymlinkEntry("vol", "a"+host.dir)}},
		{"/loop", []fixture.Entry{harness.SymlinkEntry("loop", "pool"), harness.SymlinkEntry("pool", "loop")}},
		{"/proc", nil},
		{"/proc/self/root" + host.dir, nil},
		{"/", nil},
		{"", nil},
	} {
		id := d.Hostile(fmt.Sprintf("sec09:%d", i), volumes(row.volume), row.links)
		c, err := p.TryCreate(p.ContainerConfig(harness.OfImage(id), harness.Shell("find / -xdev -name secret; find /vol/ /loop/ "+host.dir+"/ -name secret 2>/dev/null; cat /vol/secret "+host.dir+"/secret")))
		if err != nil {
			continue
		}
		if err := c.TryStart(); err == nil {
			c.WaitExit()
			if got := harness.TextOf(c.FinalLog(), "stdout"); strings.TrimSpace(got) != "" {
				t.Errorf("volume %q shows the host: %q", row.volume, got)
			}
		}
		if made := filesNamed(t, filepath.Join(d.Root, "containers", c.ID), "secret"); len(made) > 0 {
			t.Errorf("volume %q was filled from the host: %v", row.volume, made)
		}
		c.Remove()
		host.wantUntouched("volume " + row.volume)
	}
	id := d.Hostile("sec09:good", volumes("/vol"), []fixture.Entry{{Name: "vol/"}, {Name: "vol/own", Data: []byte("of the image\n")}})
	if got := p.OutputOf(harness.OfImage(id), harness.Shell("cat /vol/own")); got != "of the image\n" {
		t.Errorf("a good volume holds %q", got)
	}
}

func filesNamed(t testing.TB, dir, name string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == name {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return found
}

// loadedKeys are labels and annotations on which some runtime, somewhere, has acted. %s is a command that leaves a mark.
func loadedKeys(command string) map[string]string {
	return map[string]string{
		"containerd.io/restart.loguri": "binary://" + command, "containerd.io/restart.status": "running",
		"io.cri-containerd.kind": "sandbox", "io.cri-containerd.image": "managed",
		"org.systemd.property.ExecStopPost": "['" + command + "']", "org.systemd.property.SuccessAction": "'reboot-force'",
		"run.oci.hooks.stderr": command, "run.oci.handler": "wasm", "run.oci.keep_original_groups": "1",
		"io.katacontainers.config.hypervisor.path": command, "module.wasm.image/variant": "compat",
		"cdi.k8s.io/x": "vendor.com/class=all", "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "stolen",
		"io.kubernetes.cri-o.UnifiedCgroup": "memory.max=1", "io.kubernetes.cri-o.LinkLogs": "x", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
		"io.cri-o.userns-mode": "auto", "seccomp-profile.kubernetes.cri-o.io": "unconfined",
	}
}

// configsOf is every OCI configuration that the daemon and its shim have written.
func configsOf(d *harness.Daemon) map[string]string {
	d.Helper()
	all := map[string]string{}
	for _, path := range filesNamed(d, d.State, "config.json") {
		all[path] = harness.HostFile(d, path)
	}
	return all
}

// wantNotInConfigs: none of the keys and values has reached what the OCI runtime reads.
func wantNotInConfigs(d *harness.Daemon, keys map[string]string) {
	d.Helper()
	configs := configsOf(d)
	if len(configs) < 2 {
		d.Fatalf("found only %d configurations", len(configs))
	}
	for path, config := range configs {
		for key, value := range keys {
			if strings.HasPrefix(key, "io.kubernetes.cri.") { // ours to write
				if strings.Contains(config, `"`+key+`":"`+value+`"`) && value != "sandbox" {
					d.Errorf("%s has %s=%s", path, key, value)
				}
			} else if strings.Contains(config, key) {
				d.Errorf("%s has %s", path, key)
			}
		}
	}
}

// TestSEC10ImageLabels: labels of an image are the image's. Nothing acts on them and nothing else shows them.
func TestSEC10ImageLabels(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	host := plantCanary(d)
	labels := loadedKeys("/bin/touch " + host.path("run"))
	labels["huge"] = strings.Repeat("x", 1<<20)
	for i := range 50_000 {
		labels[fmt.Sprintf("many.%d", i)] = ""
	}
	id := d.Hostile("sec10:1", v1.Config{Labels: labels})
	c := p.Run(harness.OfImage(id), harness.Idle())
	s := c.Status()
	if fmt.Sprint(s.Labels) != fmt.Sprint(c.Config.Labels) || fmt.Sprint(s.Annotations) != fmt.Sprint(c.Config.Annotations) {
		t.Errorf("the status has labels %.200v and annotations %.200v", s.Labels, s.Annotations)
	}
	r, err := d.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.Must(err)
	for _, listed := range r.Containers {
		if len(listed.Labels) != len(c.Config.Labels) {
			t.Errorf("the list has labels %.200v", listed.Labels)
		}
	}
	delete(labels, "huge")
	for i := range 50_000 {
		delete(labels, fmt.Sprintf("many.%d", i))
	}
	labels["many.1"] = ""
	wantNotInConfigs(d, labels)
	c.Stop(0)
	host.wantUntouched("labels of an image")
}

// TestSEC11Annotations: annotations of a request are the kubelet's. The OCI runtime, which acts on some, gets none.
func TestSEC11Annotations(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	host := plantCanary(d)
	keys := loadedKeys("/bin/touch " + host.path("run"))
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Annotations, c.Labels = keys, keys })
	annotated := harness.With(func(c *cri.ContainerConfig) { c.Annotations, c.Labels, c.Image.Annotations = keys, keys, keys })
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), annotated))
	harness.WantCode(t, err, codes.FailedPrecondition, "vendor.com/class=all") // the one that cribox acts on: a device that must be described on this host
	keys = maps.Clone(keys)
	delete(keys, "cdi.k8s.io/x")
	c := p.Run(harness.Idle(), annotated)
	wantNotInConfigs(d, keys)
	if s := c.Status(); fmt.Sprint(s.Annotations) != fmt.Sprint(keys) {
		t.Errorf("the status should tell the annotations as they were asked for: %v", s.Annotations)
	}
	c.Stop(0)
	p.Stop()
	p.Remove()
	host.wantUntouched("annotations")
}

// TestSEC12CgroupAnnotations: no annotation, however it is spelled, changes a limit.
func TestSEC12CgroupAnnotations(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	keys := map[string]string{}
	for _, key := range []string{
		"io.kubernetes.cri-o.UnifiedCgroup", "io.kubernetes.cri-o.UnifiedCgroup.web", "IO.KUBERNETES.CRI-O.UNIFIEDCGROUP",
		"io.kubernetes.cri-o.UnifiedCgroup.", "unified-cgroup.cribox.io", "run.oci.systemd.subgroup",
	} {
		keys[key] = "memory.max=max;memory.high=max"
	}
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Annotations = keys })
	c := p.Run(harness.Idle(), harness.Called("web"), harness.With(func(c *cri.ContainerConfig) {
		c.Annotations = keys
		c.Linux.Resources.MemoryLimitInBytes = 96 << 20
	}))
	controller, file := "memory", "memory.limit_in_bytes"
	if harness.OnUnified() {
		controller, file = "", "memory.max"
	}
	if got := c.CgroupFile(controller, file); got != fmt.Sprint(96<<20) {
		t.Errorf("%s is %s", file, got)
	}
	wantNotInConfigs(d, keys)
}

// TestSEC13Sysctls: a pod sets what belongs to its own namespaces, one setting for each entry.
func TestSEC13Sysctls(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	guarded := []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/sysrq", "/proc/sys/vm/overcommit_memory"}
	before := map[string]string{}
	for _, path := range guarded {
		if _, err := os.Stat(path); err == nil { // not every kernel has all of them
			before[path] = harness.HostFile(t, path)
		}
	}
	hostNet := func(c *cri.PodSandboxConfig) { harness.OnHostNetwork(c) }
	hostIPC := func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	}
	own := func(*cri.PodSandboxConfig) {}
	for _, row := range []struct {
		pod        harness.PodOption
		key, value string
	}{
		{own, "kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x"},
		{own, "kernel.shm_rmid_forced", "1 kernel.core_pattern=|/x"},
		{own, "kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/x"},
		{own, "kernel.shm_rmid_forced", "1\x00"},
		{own, "kernel.shm_rmid_forced", "1;2"},
		{own, "kernel.shm_rmid_forced", "$(x)"},
		{own, "kernel.core_pattern", "|/x"},
		{own, "../kernel/core_pattern", "|/x"},
		{own, "net/../kernel/core_pattern", "core"},
		{own, "net..kernel.core_pattern", "core"},
		{own, "net.core.somaxconn=1+kernel.core_pattern", "core"},
		{own, "kernel/core_pattern", "core"},
		{own, "net/ipv4/conf/eth0.100/forwarding", "1"},
		{own, "net/../kernel/shm_rmid_forced", "1"},
		{own, "vm.overcommit_memory", "1"},
		{own, "fs.mqueue/../../kernel/sysrq", "1"},
		{own, "", "1"},
		{own, strings.Repeat("net.a", 1000), "1"},
		{hostIPC, "kernel.shm_rmid_forced", "1"},
		{hostIPC, "fs.mqueue.msg_max", "5"},
		{hostNet, "net.ipv4.ip_forward", "0"},
		{hostNet, "net.core.somaxconn", "1"},
	} {
		_, err := d.TryPod(d.PodConfig(row.pod, func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{row.key: row.value} }))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%.60q = %q: %v", row.key, row.value, err)
		}
	}
	for path, was := range before {
		if now := harness.HostFile(t, path); now != was {
			t.Errorf("%s of the host was %q, is %q", path, was, now)
		}
	}
}

// TestSEC14WorkingDir: a container and an exec in it stand inside the container's root, or do not start.
func TestSEC14WorkingDir(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	host := plantCanary(d)
	d.Pulled(harness.Busybox)
	refused := []string{"/proc/1/root", "/proc/1/cwd", "/proc/thread-self/cwd", "/a/../proc/self/fd/5"}
	for fd := range 18 {
		refused = append(refused, fmt.Sprintf("/proc/self/fd/%d", fd+3))
	}
	for _, dir := range refused {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.WorkingDir = dir })))
		harness.WantCode(t, err, codes.InvalidArgument, "working_dir")
	}
	id := d.Hostile("sec14:fd", v1.Config{WorkingDir: "/proc/self/fd/7"})
	_, err := p.TryCreate(p.ContainerConfig(harness.OfImage(id), harness.Idle()))
	harness.WantCode(t, err, codes.InvalidArgument, "working_dir")

	links := []fixture.Entry{
		harness.SymlinkEntry("out", host.dir), harness.SymlinkEntry("up", host.up("folder")), harness.SymlinkEntry("chain", "hop/"+host.dir[1:]), harness.SymlinkEntry("hop", "/"),
		harness.SymlinkEntry("root", "/proc/1/root"), harness.SymlinkEntry("loop", "loop"), {Name: "real/"},
	}
	for fd := range 10 {
		links = append(links, harness.SymlinkEntry(fmt.Sprintf("fd%d", fd+3), fmt.Sprintf("/proc/self/fd/%d", fd+3)))
	}
	for _, dir := range []string{"/out", "/out/made", "/up", "/up/made/deeper", "/chain", "/root/tmp", "/loop", "/loop/x", "/fd3", "/fd4", "/fd5", "/fd6", "/fd7", "/fd8", "/fd9"} {
		id := d.Hostile("sec14:"+strings.ReplaceAll(dir[1:], "/", "-"), v1.Config{WorkingDir: dir}, links)
		c := p.Create(harness.OfImage(id), harness.Idle())
		if err := c.TryStart(); err == nil {
			for _, place := range []string{".", "..", "../.."} {
				if got := c.Exec("ls", "-a", place); strings.Contains(got, "ptmx") && !strings.Contains(got, "null") || strings.Contains(got, "secret") {
					t.Errorf("working directory %s: the container stands in the host's folder: %q", dir, got)
				}
			}
			if stands, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.PID())); err == nil {
				t.Logf("working directory %s becomes %s", dir, stands)
			}
		}
		host.wantUntouched("working directory " + dir)
		c.Remove()
	}
}

// TestSEC15LinksInRoot: what the daemon gives every container is given inside its root, whatever the image has in these places.
func TestSEC15LinksInRoot(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	host := plantCanary(d)
	places := []string{"etc", "etc/mtab", "etc/hosts", "etc/hostname", "etc/resolv.conf", "run", "dev/shm", "sys", "sys/fs", "tmp"}
	started := 0
	for n, place := range places {
		for form, to := range map[string]string{
			"absolute": host.path(filepath.Base(place)), "relative": host.up(filepath.Base(place)), "folder": host.dir, "chained": "/hop/" + filepath.Base(place),
		} {
			entries := []fixture.Entry{harness.SymlinkEntry("hop", host.up(""))}
			if dir := filepath.Dir(place); dir != "." {
				entries = append(entries, fixture.Entry{Name: dir + "/"})
			}
			entries = append(entries, fixture.Entry{Name: filepath.Dir(place) + "/.wh." + filepath.Base(place)})
			links := []fixture.Entry{harness.SymlinkEntry(place, to)}
			id := d.Hostile(fmt.Sprintf("sec15:%d-%s", n, form), v1.Config{}, entries, links)
			c, err := p.TryCreate(p.ContainerConfig(harness.OfImage(id), harness.Shell("echo x > /etc/planted; cat /"+place+"/secret /hop/secret; exec sleep 1d")))
			if err != nil {
				continue
			}
			if err := c.TryStart(); err == nil {
				started++
				c.Exec("true")
				c.Stop(0)
				if got := harness.TextOf(c.FinalLog(), "stdout"); strings.Contains(got, canarySecret) {
					t.Errorf("/%s, %s: the container reads the host: %q", place, form, got)
				}
			}
			c.Remove()
			host.wantUntouched("/" + place + ", " + form)
		}
	}
	if started == 0 {
		t.Error("none of them started: this proves nothing")
	}
}

// TestSEC16DevLink: a root whose /dev leads to a folder of the host costs that folder nothing.
func TestSEC16DevLink(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	linksInPlaceOf(d, "dev", "sec16")
}

// TestSEC25ProcLink: the same for /proc and /sys, and nothing but the files that lxcfs shows is mounted below /proc.
func TestSEC25ProcLink(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	linksInPlaceOf(d, "proc", "sec25")
	p := d.RunPod()
	d.Pulled(harness.Busybox)
	for _, place := range []string{"/proc", "/proc/", "/proc/self/attr", "/proc/self/../self/attr", "/x/../proc/sys", "/proc/1/root/etc", "/proc/sys/kernel"} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: "/usr", ContainerPath: place}}
		})))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("a mount at %s: %v", place, err)
		}
	}
}

func linksInPlaceOf(d *harness.Daemon, place, name string) {
	d.Helper()
	p := d.RunPod()
	host := plantCanary(d)
	for form, to := range map[string]string{"absolute": host.dir, "relative": host.up(""), "chained": "hop"} {
		id := d.Hostile(name+":"+form, v1.Config{}, []fixture.Entry{harness.SymlinkEntry("hop", host.dir), harness.SymlinkEntry(place, to)})
		c := p.Create(harness.OfImage(id), harness.Idle())
		err := c.TryStart()
		d.Logf("/%s -> %s: %v", place, to, err)
		if err == nil {
			c.Exec("true")
		}
		host.wantUntouched("/" + place + " -> " + to)
		c.Remove()
	}
}

// TestSEC17Identifiers: what becomes part of a path on the host is one part of it, or is refused.
func TestSEC17Identifiers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	d.Pulled(harness.Busybox)
	before := d.Ledger()
	evil := []string{"../../etc/x", "a/b", "/", "..", ".", "a\x00b", "a\nb", "\x1b[2J", strings.Repeat("n", 4096)}
	type set func(*cri.PodSandboxConfig, *cri.ContainerConfig, string)
	for field, row := range map[string]struct {
		set   set
		of    string // pod or container
		also  []string
		legal []string
	}{
		"name":      {func(p *cri.PodSandboxConfig, _ *cri.ContainerConfig, s string) { p.Metadata.Name = s }, "pod", []string{""}, nil},
		"namespace": {func(p *cri.PodSandboxConfig, _ *cri.ContainerConfig, s string) { p.Metadata.Namespace = s }, "pod", nil, nil},
		"uid":       {func(p *cri.PodSandboxConfig, _ *cri.ContainerConfig, s string) { p.Metadata.Uid = s }, "pod", nil, nil},
		"hostname":  {func(p *cri.PodSandboxConfig, _ *cri.ContainerConfig, s string) { p.Hostname = s }, "pod", nil, nil},
		"log_directory": {func(p *cri.PodSandboxConfig, _ *cri.ContainerConfig, s string) { p.LogDirectory = s }, "pod",
			[]string{"/a/../../etc", "/proc/self/fd/3", "/proc/1/root/etc"}, []string{"/"}},
		"container name": {func(_ *cri.PodSandboxConfig, c *cri.ContainerConfig, s string) { c.Metadata.Name = s }, "container", []string{""}, nil},
		"log_path":       {func(_ *cri.PodSandboxConfig, c *cri.ContainerConfig, s string) { c.LogPath = s }, "container", []string{"/etc/../../x", "a/../../x", "x/"}, []string{"a/b"}},
	} {
		for _, value := range append(slices.Clone(evil), row.also...) {
			if slices.Contains(row.legal, value) {
				continue
			}
			var err error
			if row.of == "pod" {
				config := d.PodConfig()
				d.Must(os.RemoveAll(config.LogDirectory))
				row.set(config, nil, value)
				_, err = d.TryPod(config)
			} else {
				config := p.ContainerConfig(harness.Idle())
				row.set(nil, config, value)
				_, err = p.TryCreate(config)
			}
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s %.40q: %v", field, value, err)
			}
		}
	}
	d.WantFlat(before)
}

// TestSEC19Masks: what tells about the host, or is a known way into its kernel, is shut to a usual container.
func TestSEC19Masks(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("wait"))
	for _, path := range harness.MaskedPaths {
		if _, err := os.Lstat(path); err != nil {
			continue // not with this kernel
		}
		// Where there is AppArmor, the profile denies to read some at all.
		if got := c.MayFail("sh", "-c", "if [ -d "+path+" ]; then ls -A "+path+"; else head -c 100 "+path+"; fi"); got.Stdout != "" {
			t.Errorf("%s shows %q", path, got.Stdout)
		}
	}
	for _, path := range harness.ReadonlyPaths {
		if r, err := c.TryExec(10, "sh", "-c", "touch "+path+" || echo x > "+path+"/x"); err != nil || r.Code == 0 {
			t.Errorf("%s can be written: %+v %v", path, r, err)
		}
	}
	for family, want := range map[string]string{"unix": "open", "inet": "open", "alg": "", "vsock": ""} {
		got := strings.TrimSpace(c.Exec("/toolbox", "socket", family))
		if want != "" && got != want || want == "" && got == "open" {
			t.Errorf("a socket of family %s: %s", family, got)
		}
	}
}

// TestSEC20CgroupPlacement: every process of a pod, those of an exec included, is below the kubelet's cgroup, and cannot write there.
func TestSEC20CgroupPlacement(t *testing.T) {
	t.Parallel()
	wantBelowItsCgroup(harness.NewDaemon(t), 20)
}

// TestSEC20UserNamespace: the same for a pod whose root is nobody on the host.
func TestSEC20UserNamespace(t *testing.T) {
	t.Parallel()
	wantBelowItsCgroup(harness.NewDaemon(t), 20, harness.InUserNamespace)
}

// wantBelowItsCgroup runs a pod in a cgroup of the kubelet's that holds so many processes, and looks where they are and what stops them.
func wantBelowItsCgroup(d *harness.Daemon, most int, options ...harness.PodOption) {
	d.Helper()
	parent := d.MakeCgroup()
	d.LimitProcesses(parent, most)
	p := d.RunPod(append(options, func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })...)
	c := p.Run(harness.Idle())
	lines := harness.HostFile(d, fmt.Sprintf("/proc/%d/cgroup", c.PID())) + harness.HostFile(d, fmt.Sprintf("/proc/%d/cgroup", p.PausePID()))
	lines += c.Exec("cat", "/proc/self/cgroup")
	checked := 0
	for line := range strings.Lines(lines) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 || !harness.ControllerIsUsed(fields[1]) {
			continue
		}
		checked++
		// From inside its own cgroup namespace an exec'ed process sees itself at the root, or below it.
		if !strings.HasPrefix(fields[2], parent+"/") && fields[2] != "/" || strings.Contains(fields[2], "..") {
			d.Errorf("a process of the pod is in %s", line)
		}
	}
	if checked < 3 {
		d.Errorf("only %d lines to look at:\n%s", checked, lines)
	}
	groups := "/sys/fs/cgroup /sys/fs/cgroup/*"
	if !harness.OnUnified() {
		groups = "/sys/fs/cgroup/*" // between the hierarchies lies a tmpfs of the container's own
	}
	if r, err := c.TryExec(10, "sh", "-c", "for d in "+groups+"; do mkdir $d/x && exit 0; done 2>/dev/null; exit 1"); err != nil || r.Code == 0 {
		d.Errorf("made a cgroup from inside: %+v %v", r, err)
	}
	files := []string{"pids/pids.max", "pids/cgroup.procs", "memory/memory.limit_in_bytes"}
	if harness.OnUnified() {
		files = []string{"pids.max", "cgroup.procs", "memory.max"}
	}
	for _, file := range files {
		if r, err := c.TryExec(10, "sh", "-c", "echo 1 > /sys/fs/cgroup/"+file); err != nil || r.Code == 0 {
			d.Errorf("wrote %s from inside: %+v %v", file, r, err)
		}
	}
	// The limit of the kubelet's cgroup holds for what an exec starts, too.
	script := fmt.Sprintf("for n in $(seq %d); do sleep 4320 & done", most)
	if r, err := c.TryExec(10, "sh", "-c", script); err == nil && r.Code == 0 {
		d.Errorf("an exec has started %d processes where there may be no more with those that run", most)
	}
}

// TestSEC21MemoryHog: what a container takes too much of is taken from the container; its parent stays.
func TestSEC21MemoryHog(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	parent := d.MakeCgroup()
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	shim, logger := d.WaitRole("shim", 0), d.WaitRole("logger", 0)
	for _, pid := range []int{shim, logger, d.Process.PID()} {
		if group := harness.HostFile(t, fmt.Sprintf("/proc/%d/cgroup", pid)); strings.Contains(group, parent) {
			t.Errorf("a process of the runtime is in the pod's cgroup: %s", group)
		}
	}
	for round := range 5 {
		hog := p.Run(d.Tool("eat", "256"), harness.With(func(c *cri.ContainerConfig) {
			c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 32<<20, 32<<20
		}))
		if s := hog.WaitExit(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("round %d: exit code %d, reason %q", round, s.ExitCode, s.Reason)
		}
		hog.Remove()
	}
	if d.Role("shim") != shim || d.Role("logger") != logger {
		t.Error("shim or logger is another one now")
	}
}

// TestSEC21ForkBomb: what a container starts too much of is not started; the node's other pods, its parent and the daemon go on, and it ends.
func TestSEC21ForkBomb(t *testing.T) {
	t.Parallel()
	const most = 40
	d := harness.NewDaemon(t, harness.WithConfig(fmt.Sprintf("[containers]\npids_limit = %d\n", most)))
	shim, logger := d.WaitRole("shim", 0), d.WaitRole("logger", 0)
	for name, p := range map[string]*harness.Pod{"usual": d.RunPod(), "in a user namespace": d.RunPod(harness.InUserNamespace)} {
		other := p.Run(harness.Idle())
		bomb := p.Run(harness.Shell("bomb() { bomb | bomb & }; bomb; exec sleep 1d"))
		harness.Eventually(t, "the bomb to meet its limit", func() error {
			hits := bomb.CgroupFile("pids", "pids.events")
			return harness.Unless(hits != "max 0", "%s", hits)
		})
		if now := len(d.ProcessesOf(bomb.ID)); now > most {
			t.Errorf("%s: %d processes, of %d", name, now, most)
		}
		other.Exec("true") // of the same pod
		d.RunPod().Run(harness.Idle()).Exec("true")
		if r, err := bomb.TryExec(5, "true"); err == nil && r.Code == 0 {
			t.Logf("%s: an exec found a free place", name)
		}
		bomb.Stop(0)
		if s := bomb.Status(); s.ExitCode != 137 {
			t.Errorf("%s: exit code %d, want 137", name, s.ExitCode)
		}
		if left := d.ProcessesOf(bomb.ID); len(left) > 0 {
			t.Errorf("%s: left: %v", name, left)
		}
	}
	harness.Eventually(t, "shim and logger to be those of before", func() error { // a child has its parent's command line for a moment
		now := [2]int{d.Role("shim"), d.Role("logger")}
		return harness.Unless(now == [2]int{shim, logger}, "they are %v, were %d and %d", now, shim, logger)
	})
}

// TestSEC22Devices: a device node that a container makes for itself opens nothing.
func TestSEC22Devices(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	usual := p.Run(harness.Idle())
	inImage := p.Run(harness.Idle(), harness.OfImage(d.Hostile("sec22:1", v1.Config{}, []fixture.Entry{
		{Name: "n0", Type: tar.TypeBlock, Devmajor: 8, Mode: 0o666}, {Name: "n1", Type: tar.TypeChar, Devmajor: 1, Devminor: 1, Mode: 0o666},
		{Name: "n2", Type: tar.TypeChar, Devmajor: 10, Devminor: 229, Mode: 0o666}, {Name: "n3", Type: tar.TypeBlock, Devmajor: 254, Mode: 0o666},
		{Name: "n4", Type: tar.TypeChar, Devmajor: 5, Devminor: 1, Mode: 0o666},
	})))
	for i, device := range []string{"b 8 0", "c 1 1", "c 10 229", "b 254 0", "c 5 1"} {
		for name, r := range map[string]harness.ExecResult{
			"made inside": usual.MayFail("sh", "-c", fmt.Sprintf("mknod /tmp/n%d %s && head -c 1 /tmp/n%d", i, device, i)),
			"read":        inImage.MayFail("head", "-c", "1", fmt.Sprintf("/n%d", i)),
			"written":     inImage.MayFail("sh", "-c", fmt.Sprintf("echo > /n%d", i)),
		} {
			if r.Code == 0 || !strings.Contains(r.Stderr, "not permitted") && !strings.Contains(r.Stderr, "denied") {
				t.Errorf("device %s, %s: %+v", device, name, r)
			}
		}
	}
	for _, good := range []string{"/dev/null", "/dev/zero", "/dev/urandom"} {
		usual.Exec("head", "-c", "1", good)
	}
	// More mounts than one netlink message of the runtime's bootstrap has ever held.
	long := strings.Repeat("d", 200)
	var many []*cri.Mount
	for i := range 350 {
		many = append(many, &cri.Mount{HostPath: d.Logs(), ContainerPath: fmt.Sprintf("/m/%s/%d", long, i), Readonly: true})
	}
	p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Mounts = many })).Exec("ls", fmt.Sprintf("/m/%s/349", long))
}

// TestSEC23SelfExe: a container that runs itself through /proc runs nothing of the host's, and inherits nothing.
func TestSEC23SelfExe(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	before := map[string]string{}
	for _, b := range []string{"runc", harness.Cribox} {
		before[b] = fingerprint(t, harness.Binary(b))
	}
	id := d.Hostile("sec23:1", v1.Config{}, []fixture.Entry{
		{Name: "self", Mode: 0o755, Data: []byte("#!/proc/self/exe\n")},
		{Name: "bin/overwrite", Mode: 0o755, Data: []byte("#!/bin/sh\nfor p in /proc/[0-9]*; do echo x > $p/exe; done 2>/dev/null\nls /proc/1/fd\n")},
	})
	c := p.Create(harness.OfImage(id), harness.Running("/self"))
	if err := c.TryStart(); err == nil {
		c.WaitExit()
	}
	up := p.Run(harness.OfImage(id), harness.Idle())
	up.MayFail("/self")
	for range 5 {
		if got := strings.Fields(up.Exec("/bin/overwrite")); !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Errorf("descriptors of the container: %v", got)
		}
	}
	for b, was := range before {
		if now := fingerprint(t, harness.Binary(b)); now != was {
			t.Errorf("%s was %s, is %s", b, was, now)
		}
	}
}

// TestSEC26ImageSubPath: a path into an image volume that leads out of it is an error, and mounts nothing.
func TestSEC26ImageSubPath(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	host := plantCanary(d)
	d.Pulled(harness.Busybox)
	id := d.Hostile("sec26:1", v1.Config{}, []fixture.Entry{harness.SymlinkEntry("out", host.dir), harness.SymlinkEntry("up", host.up("")), harness.SymlinkEntry("root", "/"), harness.SymlinkEntry("loop", "loop"), {Name: "file", Data: []byte("x")}})
	before := d.Ledger()
	for _, sub := range []string{"..", "../..", "/etc", "a/../../b", "etc/..", "out", "up", "loop", "root/proc/self/root", "no/such/folder", "a\x00b", "file/x"} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{ContainerPath: "/v", Image: &cri.ImageSpec{Image: id}, ImageSubPath: sub, Readonly: true}}
		})))
		if err == nil {
			t.Errorf("sub path %q was accepted", sub)
		}
	}
	c := p.Run(harness.Idle(), harness.Mounted(harness.Volume(id, "root", "/whole"), harness.Volume(id, "file", "/one"))) // a link to the root is one to the image's
	if got := c.Exec("cat", "/whole/file", "/one"); got != "xx" {
		t.Errorf("paths that stay in the image: %q", got)
	}
	c.Remove()
	d.WantFlat(before)
	host.wantUntouched("sub paths")
}

// TestSEC27HostPaths: a path that means something else to every process, or a promise that the host cannot keep, is refused.
func TestSEC27HostPaths(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	d.Pulled(harness.Busybox)
	private := filepath.Join(d.Dir, "private")
	d.Must(os.Mkdir(private, 0o755))
	before := d.Ledger()
	for _, mount := range []*cri.Mount{
		{HostPath: "tmp"},
		{HostPath: ""},
		{HostPath: "/proc/self/fd/5"},
		{HostPath: "/proc/self/cwd"},
		{HostPath: "/proc/thread-self/root"},
		{HostPath: "/proc/1/root"},
		{HostPath: "/dev/fd/3"},
		{HostPath: "/tmp/../etc"},
		{HostPath: "/tmp/a\x00b"},
		{HostPath: "/tmp", MountOptions: []string{"dev"}},
		{HostPath: "/tmp", MountOptions: []string{"upperdir=/etc"}},
		{HostPath: "/tmp", Propagation: 99},
		{HostPath: "/tmp", RecursiveReadOnly: true},
		{HostPath: "/tmp", Readonly: true, RecursiveReadOnly: true, Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{HostPath: "/tmp", UidMappings: []*cri.IDMapping{{Length: 1}}},
	} {
		mount.ContainerPath = "/v"
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{mount} })))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", mount, err)
		}
	}
	d.WantFlat(before)
}
