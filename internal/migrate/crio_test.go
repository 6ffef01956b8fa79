package migrate

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// crio134 has the files of a node on which CRI-O 1.34.0 has pulled images: each key that
// `crio config` prints, with CRI-O's own value, a drop-in, and the list that containers-storage keeps.
const crio134 = "testdata/crio-1.34"

// TestRealCRIO has a plan for all that a real CRI-O says of itself.
func TestRealCRIO(t *testing.T) {
	p, err := FromCRIO(Options{Host: crio134, DropIns: "/cribox.d", Registries: "/certs.d"})
	if err != nil {
		t.Fatal(err)
	}
	wantRules(t, crio134+crioFile)
	if p.settings["tracing.endpoint"] != nil {
		t.Error("traces are sent, which CRI-O does not send")
	}
	wantLines(t, p, "missing runtime.workloads.workload-type.resources.cpuset", "taken runtime strict", "missing runtime strict -> "+
		` (runtime.runtimes.strict.default_annotations."a.test/b" = 'c': annotations of CRI-O do nothing)`)
	wantText(t, contentOf(t, p, "/cribox.d/50-crio.toml"), "pids_limit = 4096", "pinned = ['127.0.0.1:5000/library/web:1']",
		"[runtimes.strict]\npath = '/usr/bin/runc'\nprivileged_without_host_devices = true")
	wantText(t, contentOf(t, p, "/certs.d/docker.io/hosts.toml"), "[host.'http://127.0.0.1:5000']")
	want := []string{
		"127.0.0.1:5000/library/busybox:docker",
		"127.0.0.1:5000/library/busybox@sha256:6c143414b862cca787dd138fc9d6f19aa7f0616abc74de38e30916dd1bfcffd0",
		"127.0.0.1:5000/library/web:1",
		"docker.io/library/busybox:1",
		"docker.io/library/busybox:latest",
	}
	if !slices.Equal(p.Pulls, want) {
		t.Errorf("to be pulled: %q, want each name of each image: %q", p.Pulls, want)
	}
}

// wantRules fails for each key of the file that no rule is for, also where its value means nothing.
func wantRules(t *testing.T, file string) {
	t.Helper()
	c, err := readTOML(file)
	if err != nil {
		t.Fatal(err)
	}
	crio, _ := c["crio"].(map[string]any)
	rules := append(allCRIORules(Options{}, crio, map[string]*handler{}), rule{key: "image.insecure_registries"})
	all := settingsOf(crio)
	if len(all) < 100 {
		t.Errorf("%s has %d keys only", file, len(all))
	}
	for _, s := range all {
		if !slices.ContainsFunc(rules, func(r rule) bool { _, ok := s.like(r.key); return ok }) {
			t.Errorf("no rule is for %s", s)
		}
	}
}

// TestImagesOfStorage finds the list of images where CRI-O's file or storage.conf say.
func TestImagesOfStorage(t *testing.T) {
	const own, shared = "/etc/crio/crio.conf", "/etc/containers/storage.conf"
	type files = map[string]string
	for name, test := range map[string]struct {
		config files
		lists  []string
	}{
		"by default":       {files{}, []string{"/var/lib/containers/storage/overlay-images"}},
		"of storage.conf":  {files{shared: "[storage]\ngraphroot = '/moved'\n"}, []string{"/moved/overlay-images"}},
		"of its package":   {files{"/usr/share" + shared[4:]: "[storage]\ngraphroot = '/moved'\n"}, []string{"/moved/overlay-images"}},
		"of CRI-O first":   {files{own: "[crio]\nroot = '/own'\n", shared: "[storage]\ngraphroot = '/moved'\n"}, []string{"/own/overlay-images"}},
		"by driver":        {files{shared: "[storage]\ndriver = 'vfs'\n"}, []string{"/var/lib/containers/storage/vfs-images"}},
		"apart":            {files{own: "[crio]\nimagestore = '/apart'\nroot = '/own'\n"}, []string{"/apart/overlay-images", "/own/overlay-images"}},
		"apart by storage": {files{shared: "[storage]\nimagestore = '/apart'\n"}, []string{"/apart/overlay-images"}},
	} {
		t.Run(name, func(t *testing.T) {
			all, want := maps.Clone(test.config), []string{}
			for _, folder := range test.lists {
				all[folder+"/images.json"] = `[{"names": ["registry.test` + folder + `:1"]}]`
				want = append(want, "registry.test"+folder+":1")
			}
			p, err := FromCRIO(host(t, all))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(p.Pulls, want) {
				t.Errorf("to be pulled: %q, want %q", p.Pulls, want)
			}
		})
	}
}

// TestDamagedStorage names the file that cannot be read.
func TestDamagedStorage(t *testing.T) {
	const list = "/var/lib/containers/storage/overlay-images/images.json"
	for file, content := range map[string]string{"/etc/containers/storage.conf": "[storage", list: "{"} {
		if _, err := FromCRIO(host(t, map[string]string{file: content})); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("error of a damaged %s: %v", file, err)
		}
	}
}

// TestCRIOTraces sends traces where CRI-O does, and nowhere else.
func TestCRIOTraces(t *testing.T) {
	for config, want := range map[string]any{
		"tracing_endpoint = '10.0.0.1:4317'":                         nil,
		"enable_tracing = false\ntracing_endpoint = '10.0.0.1:4317'": nil,
		"enable_tracing = true\ntracing_endpoint = '10.0.0.1:4317'":  "10.0.0.1:4317",
		"enable_tracing = true":                                      "127.0.0.1:4317",
	} {
		p, err := FromCRIO(host(t, map[string]string{"/etc/crio/crio.conf": "[crio.tracing]\n" + config + "\n"}))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.settings["tracing.endpoint"]; got != want {
			t.Errorf("%q: traces go to %v, want %v", config, got, want)
		}
	}
}

// TestCRIODefaults says what changes where CRI-O's file leaves it open.
func TestCRIODefaults(t *testing.T) {
	open := []string{"missing runtime.default_runtime is not set", "missing runtime.default_capabilities is not set",
		"taken runtime.selinux is not set"}
	p, err := FromCRIO(host(t, map[string]string{"/sys/fs/selinux/enforce": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, p, open...)
	p, err = FromCRIO(host(t, map[string]string{"/sys/fs/selinux/enforce": "1",
		"/etc/crio/crio.conf": "[crio.runtime]\ndefault_runtime = 'runc'\ndefault_capabilities = []\nselinux = true\n"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines(p) {
		if strings.Contains(l, "is not set") {
			t.Errorf("it is set: %s", l)
		}
	}
}
