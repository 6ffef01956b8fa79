package resources

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// object is any JSON object.
type object = map[string]any

// describe writes a CDI file as a device plugin does: whole, then renamed.
func describe(d *harness.Daemon, dir, file, kind string, edits object, devices object) {
	d.Helper()
	all := []object{}
	for name, e := range devices {
		all = append(all, object{"name": name, "containerEdits": e})
	}
	text, err := json.Marshal(object{"cdiVersion": "0.7.0", "kind": kind, "containerEdits": edits, "devices": all})
	d.Must(err)
	d.Must(os.MkdirAll(dir, 0o755))
	d.Must(os.WriteFile(filepath.Join(dir, file+".new"), text, 0o600))
	d.Must(os.Rename(filepath.Join(dir, file+".new"), filepath.Join(dir, file)))
}

func cdi(names ...string) harness.ContainerOption {
	return func(c *cri.ContainerConfig) {
		for _, n := range names {
			c.CDIDevices = append(c.CDIDevices, &cri.CDIDevice{Name: n})
		}
	}
}

func annotated(key, value string) harness.ContainerOption {
	return func(c *cri.ContainerConfig) { c.Annotations[key] = value }
}

// TestCDIDevices: a container has all that the files say of its devices, what runs by exec too, and is no less confined.
func TestCDIDevices(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	shared := filepath.Join(d.Dir, "driver")
	d.Must(os.WriteFile(shared, []byte("driver\n"), 0o644))
	at := func(inside ...string) (all []object) {
		for _, path := range inside {
			all = append(all, object{"hostPath": shared, "containerPath": path, "options": []string{"ro", "nosuid", "nodev", "rbind"}})
		}
		return all
	}
	describe(d, d.CDIDirs()[0], "vendor.json", "vendor.test/gpu", object{"env": []string{"ALL=1", "WHO=vendor"}, "mounts": at("/opt/driver", "/opt/masked")}, object{
		"zero": object{"env": []string{"ZERO=1"}, "deviceNodes": []object{{"path": "/dev/gpu/zero", "hostPath": "/dev/kmsg", "permissions": "w"}}, "additionalGids": []int{4321}},
		"one":  object{"env": []string{"ONE=1"}, "deviceNodes": []object{{"path": "/dev/gpu-one", "hostPath": "/dev/null", "uid": 7, "gid": 8, "fileMode": 0o640}}, "mounts": at("/opt/one")},
		"two":  object{"env": []string{"TWO=1"}},
	})
	describe(d, d.CDIDirs()[0], "other.json", "other.test/nic", object{"env": []string{"OTHER=1"}}, object{"a": object{"env": []string{"A=1"}}})
	d.Must(os.WriteFile(filepath.Join(d.CDIDirs()[0], "broken.json"), []byte("{"), 0o600))
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Annotations["cdi.k8s.io/pod"] = "other.test/nic=a" })
	before := d.Ledger()
	c := p.Run(harness.Idle(), cdi("vendor.test/gpu=zero"), annotated("cdi.k8s.io/plugin", "vendor.test/gpu=one,vendor.test/gpu=zero"), harness.With(func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "WHO", Value: []byte("request")}}
		c.Linux.SecurityContext.MaskedPaths = append(c.Linux.SecurityContext.MaskedPaths, "/opt/masked")
	}))
	env := strings.Fields(c.Exec("env"))
	for word, want := range map[string]bool{"ALL=1": true, "WHO=vendor": true, "ZERO=1": true, "ONE=1": true, "TWO=1": false, "OTHER=1": false, "A=1": false} {
		if slices.Contains(env, word) != want {
			t.Errorf("environment has %s: %t, want %t", word, !want, want)
		}
	}
	if got := c.Exec("cat", "/opt/driver", "/opt/one", "/opt/masked"); got != "driver\ndriver\n" {
		t.Errorf("mounted files and a masked one: %q", got)
	}
	if got := c.Exec("stat", "-c", "%t:%T", "/dev/gpu/zero"); got != "1:b\n" {
		t.Errorf("the device is %q", got)
	}
	if got := c.Exec("stat", "-c", "%t:%T %u:%g %a", "/dev/gpu-one"); got != "1:3 7:8 640\n" {
		t.Errorf("the device is %q", got)
	}
	c.Exec("sh", "-c", "echo > /dev/gpu/zero") // which no other container may open
	if r, err := c.TryExec(10, "head", "-c", "1", "/dev/gpu/zero"); err != nil || r.Code == 0 {
		t.Errorf("read a device that can be written only: %v, %v", r, err)
	}
	if got := c.Exec("id", "-G"); !slices.Contains(strings.Fields(got), "4321") {
		t.Errorf("groups %q", got)
	}
	if r, err := c.TryExec(10, "touch", "/opt/driver"); err != nil || r.Code == 0 {
		t.Errorf("wrote to a read-only mount of a device: %v, %v", r, err)
	}
	other := p.Run(harness.Idle())
	if r, err := other.TryExec(10, "sh", "-c", "mknod /kmsg c 1 11 && echo > /kmsg"); err != nil || r.Code == 0 {
		t.Errorf("a container without the device opened it: %v, %v", r, err)
	}
	if got := other.Exec("env"); strings.Contains(got, "ALL=1") || strings.Contains(got, "OTHER=1") {
		t.Errorf("a container that asks for no device, in a pod whose annotation does: %q", got)
	}
	c.Remove()
	other.Remove()
	d.WantFlat(before)
}

// TestCDIFilesChange: what a device plugin wrote a moment ago counts, and a later folder wins.
func TestCDIFilesChange(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	early, late := d.CDIDirs()[0], d.CDIDirs()[1]
	for n, write := range []func(){
		func() {
			describe(d, early, "v.json", "vendor.test/gpu", object{}, object{"a": object{"env": []string{"N=0"}}})
		},
		func() {
			describe(d, early, "v.json", "vendor.test/gpu", object{}, object{"a": object{"env": []string{"N=1"}}})
		},
		func() {
			describe(d, late, "w.json", "vendor.test/gpu", object{}, object{"a": object{"env": []string{"N=2"}}})
		},
		func() {
			d.Must(os.Remove(filepath.Join(late, "w.json")))
			d.Must(os.Remove(filepath.Join(early, "v.json")))
			yaml := "cdiVersion: 0.6.0\nkind: vendor.test/gpu\ndevices:\n- name: a\n  containerEdits:\n    env: [N=3]\n"
			d.Must(os.WriteFile(filepath.Join(early, "v.yaml"), []byte(yaml), 0o600))
		},
	} {
		write()
		c := p.Run(harness.Shell("echo $N"), cdi("vendor.test/gpu=a"))
		c.WaitExit()
		if got := harness.TextOf(c.FinalLog(), "stdout"); got != fmt.Sprintln(n) {
			t.Errorf("after change %d: N=%q", n, got)
		}
	}
	d.Must(os.RemoveAll(early))
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), cdi("vendor.test/gpu=a")))
	harness.WantCode(t, err, codes.FailedPrecondition, "vendor.test/gpu=a", early, late)
}

// TestBadCDIDevices: what cannot be had is named, with where was looked and what is wrong there; nothing is left.
func TestBadCDIDevices(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	dir := d.CDIDirs()[0]
	some := object{"a": object{"env": []string{"A=1"}}}
	describe(d, dir, "one.json", "twice.test/x", object{}, some)
	describe(d, dir, "two.json", "twice.test/x", object{}, some)
	describe(d, dir, "node.json", "node.test/x", object{}, object{"a": object{"deviceNodes": []object{{"path": "/dev/no-such"}}}})
	describe(d, dir, "file.json", "file.test/x", object{}, object{"a": object{"deviceNodes": []object{{"path": "/dev/x", "hostPath": "/etc/passwd"}}}})
	d.Must(os.WriteFile(filepath.Join(dir, "broken.json"), []byte(`{"cdiVersion": "0.7.0", "kind": "broken.test/x"`), 0o600))
	p := d.RunPod()
	before := d.Ledger()
	for _, row := range []struct {
		option harness.ContainerOption
		code   codes.Code
		words  []string
	}{
		{cdi("no.test/x=a"), codes.FailedPrecondition, []string{"no.test/x=a", dir}},
		{cdi("node.test/x=b", "no.test/x=a"), codes.FailedPrecondition, []string{"node.test/x=b, no.test/x=a"}},
		{cdi("broken.test/x=a"), codes.FailedPrecondition, []string{"broken.test/x=a", "broken.json cannot be used"}},
		{cdi("twice.test/x=a"), codes.FailedPrecondition, []string{"twice.test/x=a", "one.json", "two.json"}},
		{cdi("node.test/x=a"), codes.FailedPrecondition, []string{"node.test/x=a", "/dev/no-such"}},
		{cdi("file.test/x=a"), codes.FailedPrecondition, []string{"file.test/x=a", "/etc/passwd"}},
		{cdi("a"), codes.InvalidArgument, []string{"CDI_devices.name", `"a"`}},
		{cdi("vendor.test/x=../../a"), codes.InvalidArgument, []string{"CDI_devices.name"}},
		{cdi("vendor.test/x=a\n"), codes.InvalidArgument, []string{"CDI_devices.name"}},
		{cdi(strings.Repeat("v", 10_000) + "/x=a"), codes.InvalidArgument, []string{"CDI_devices.name"}},
		{annotated("cdi.k8s.io/p", "no.test/x=a"), codes.FailedPrecondition, []string{"no.test/x=a"}},
		{annotated("cdi.k8s.io/p", "no.test/x=a,"), codes.InvalidArgument, []string{"annotations.cdi.k8s.io/p"}},
		{annotated("cdi.k8s.io/p", "/dev/sda"), codes.InvalidArgument, []string{"annotations.cdi.k8s.io/p", "/dev/sda"}},
	} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), row.option))
		harness.WantCode(t, err, row.code, row.words...)
	}
	d.WantNoContainers()
	d.WantFlat(before)
}

// TestCDIInUserNamespace: where no device node can be made the host's is bound, under its other name too.
func TestCDIInUserNamespace(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	shared := filepath.Join(d.Dir, "driver")
	d.Must(os.WriteFile(shared, []byte("driver\n"), 0o644))
	describe(d, d.CDIDirs()[0], "vendor.json", "vendor.test/gpu", object{}, object{
		"a": object{"deviceNodes": []object{{"path": "/dev/gpu/hole", "hostPath": "/dev/null", "permissions": "rw"}, {"path": "/dev/zero"}},
			"mounts": []object{{"hostPath": shared, "containerPath": "/opt/driver", "options": []string{"ro", "bind"}}}},
		"group": object{"additionalGids": []int{harness.IdsEach + 1}},
	})
	p := d.RunPod(harness.InUserNamespace)
	c := p.Run(harness.Idle(), cdi("vendor.test/gpu=a"))
	c.Exec("sh", "-c", "test -c /dev/gpu/hole && echo gone > /dev/gpu/hole && head -c 1 /dev/zero > /dev/null")
	if got := c.Exec("stat", "-c", "%t:%T", "/dev/gpu/hole"); got != "1:3\n" {
		t.Errorf("the device is %q", got)
	}
	if got := c.Exec("cat", "/opt/driver"); got != "driver\n" {
		t.Errorf("a mount of the device: %q", got)
	}
	if got := c.Exec("stat", "-c", "%u:%g", "/opt/driver"); got != "0:0\n" {
		t.Errorf("its owner inside is %q", got)
	}
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), cdi("vendor.test/gpu=group")))
	harness.WantCode(t, err, codes.InvalidArgument, "not mapped")
}

// TestSEC28HookEnvironment: hooks of CDI devices run on the host, as root. The image's environment has no say in what they load.
func TestSEC28HookEnvironment(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	out := filepath.Join(d.Dir, "hooks")
	d.Must(os.Mkdir(out, 0o755))
	kinds := []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}
	var hooks []object
	for _, kind := range kinds {
		script := fmt.Sprintf("cat > /dev/null; env > %s/%s.new; mv %s/%s.new %s/%s", out, kind, out, kind, out, kind)
		hooks = append(hooks, object{"hookName": kind, "path": "/bin/sh", "args": []string{"sh", "-c", script}})
	}
	hooks = append(hooks, object{"hookName": "createContainer", "path": "/bin/sh", "args": []string{"sh", "-c", "env > " + out + "/own"}, "env": []string{"OWN=1"}})
	describe(d, d.CDIDirs()[0], "hooks.json", "vendor.test/gpu", object{"hooks": hooks}, object{"a": object{"env": []string{"CDI=1"}}})
	c := d.RunPod().Run(harness.Idle(), cdi("vendor.test/gpu=a"), harness.With(func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "LD_PRELOAD", Value: []byte("/evil.so")}, {Key: "PATH", Value: []byte("/evil:/bin:/usr/bin")}}
	}))
	if got := c.Exec("env"); !strings.Contains(got, "LD_PRELOAD=/evil.so\n") || !strings.Contains(got, "CDI=1\n") {
		t.Errorf("the container's own environment is %q", got)
	}
	wantHooksWithEnvironment(c, len(hooks))
	c.Remove()
	for _, kind := range append(kinds, "own") {
		harness.Eventually(t, "the hook "+kind, func() error {
			_, err := os.Stat(filepath.Join(out, kind))
			return err
		})
		env, err := os.ReadFile(filepath.Join(out, kind))
		d.Must(err)
		if strings.Contains(string(env), "evil") || strings.Contains(string(env), "CDI=") {
			t.Errorf("%s has the container's environment:\n%s", kind, env)
		}
		if own := strings.Contains(string(env), "OWN=1"); own != (kind == "own") {
			t.Errorf("%s has the environment:\n%s", kind, env)
		}
	}
}

// wantHooksWithEnvironment: some OCI runtimes give a hook that has no environment the container's.
func wantHooksWithEnvironment(c *harness.Container, n int) {
	c.Helper()
	r, err := c.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	c.Must(err)
	var info struct {
		RuntimeSpec struct {
			Hooks map[string][]struct{ Env []string }
		}
	}
	c.Must(json.Unmarshal([]byte(r.Info["info"]), &info))
	for kind, list := range info.RuntimeSpec.Hooks {
		for _, hook := range list {
			n--
			if len(hook.Env) == 0 {
				c.Errorf("the hook %s has no environment of its own", kind)
			}
		}
	}
	if n != 0 {
		c.Errorf("%d hooks are missing", n)
	}
}
