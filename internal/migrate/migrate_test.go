package migrate

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// host is a folder with these files.
func host(t *testing.T, files map[string]string) Options {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Options{Host: dir, DropIns: "/cribox.d", Registries: "/certs.d"}
}

// lines are those of a plan, in one form for tests: "KIND FROM -> TO (NOTE)".
func lines(p *Plan) (all []string) {
	for _, l := range p.Lines {
		all = append(all, string(l.Kind)+" "+l.From+" -> "+l.To+" ("+l.Note+")")
	}
	return all
}

func wantLines(t *testing.T, p *Plan, want ...string) {
	t.Helper()
	got := lines(p)
	for _, begin := range want {
		if !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, begin) }) {
			t.Errorf("no line begins with %q in\n%s", begin, strings.Join(got, "\n"))
		}
	}
}

func contentOf(t *testing.T, p *Plan, path string) string {
	t.Helper()
	for _, f := range p.Files {
		if f.Path == path {
			return string(f.Content)
		}
	}
	t.Errorf("no file %s in the plan", path)
	return ""
}

func wantText(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
}

const versionThree = `
version = 3
root = "/data/containerd"
imports = ["/etc/containerd/conf.d/*.toml"]
[debug]
level = "trace"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
max_concurrent_downloads = 8
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.k8s.io/pause:3.10"
agent = "registry.test/agent:1"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
enable_unprivileged_ports = false
enable_unprivileged_icmp = true
device_ownership_from_security_context = true
brand_new = "x"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "kata"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "/etc/containerd/base.json"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = true
CriuPath = ""
NoPivotRoot = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
[plugins."io.containerd.server.v1.metrics"]
address = "0.0.0.0:1338"
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.02
`

// TestContainerdThree reads a file of version 3 with an import, a base spec, and a folder of
// registries.
func TestContainerdThree(t *testing.T) {
	o := host(t, map[string]string{
		"/etc/containerd/config.toml": versionThree,
		"/etc/containerd/conf.d/gpu.toml": `version = 3
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
privileged_without_host_devices = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
`,
		"/etc/containerd/base.json":                           `{"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 18446744073709551615}]}}`,
		"/etc/containerd/certs.d/docker.io/hosts.toml":        "server = \"https://mirror.test\"\nca = \"/etc/containerd/certs.d/docker.io/ca.crt\"\n",
		"/etc/containerd/certs.d/docker.io/ca.crt":            "certificate",
		"/etc/systemd/system/containerd.service.d/proxy.conf": "[Service]\nEnvironment=HTTPS_PROXY=http://me:word@proxy\n",
	})
	p, err := FromContainerd(o)
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, p,
		`taken max_concurrent_downloads = 8 -> images.downloads = 8`,
		`taken pinned_images.agent = 'registry.test/agent:1' -> images.pinned += 'registry.test/agent:1'`,
		`same pinned_images.sandbox = `,
		`taken enable_unprivileged_ports = false -> containers.unprivileged_ports = false`,
		`taken containerd.runtimes.runc.options.SystemdCgroup = true -> cgroup_driver = 'systemd'`,
		`missing device_ownership_from_security_context = true`,
		`missing brand_new = 'x' ->  (cribox has no such setting)`,
		`missing runtime kata (`, `missing runtime runc -> `+` (containerd.runtimes.runc.options.NoPivotRoot = true`,
		`same enable_unprivileged_icmp = true`, `missing base_runtime_spec = `,
		`same plugin io.containerd.gc.v1.scheduler (1 settings)`,
		`missing io.containerd.server.v1.metrics: address = '0.0.0.0:1338'`,
		`taken debug.level = 'trace' -> log_level = 'debug'`,
		`taken /etc/containerd/certs.d/docker.io -> /certs.d/docker.io (2 files)`,
		`missing /etc/containerd/certs.d/docker.io ->  (a file in it names /etc/containerd/certs.d`,
		`missing /etc/systemd/system/containerd.service.d/proxy.conf: Environment=`)
	wantText(t, contentOf(t, p, "/cribox.d/50-containerd.toml"), "downloads = 8", "cgroup_driver = 'systemd'",
		"[runtimes.nvidia]\npath = '/usr/bin/nvidia-container-runtime'\nprivileged_without_host_devices = true",
		"ulimits = ['nofile=1024:unlimited']", "unprivileged_ports = false", "pinned = ['registry.test/agent:1']")
	if text := contentOf(t, p, "/cribox.d/50-containerd.toml"); strings.Contains(text, "kata") {
		t.Errorf("a runtime that cribox cannot execute is taken:\n%s", text)
	}
	if text := strings.Join(lines(p), "\n"); strings.Contains(text, "word@proxy") {
		t.Errorf("a password is shown:\n%s", text)
	}
	if p.StoreRoot != filepath.Join(o.Host, "/data/containerd") || p.Sandbox != "registry.k8s.io/pause:3.10" {
		t.Errorf("the store is %s, the image of pause %s", p.StoreRoot, p.Sandbox)
	}
}

// TestContainerdTwo reads mirrors and certificates as version 2 has them.
func TestContainerdTwo(t *testing.T) {
	p, err := FromContainerd(host(t, map[string]string{"/etc/containerd/config.toml": `
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.9"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "stargz"
discard_unpacked_layers = true
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.test:5000", "http://plain.test/v2/hub"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]
endpoint = ["https://all.test"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."reg.test:5000"]
endpoint = ["http://reg.test:5000"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.test:5000".tls]
ca_file = "/etc/ssl/mirror.pem"
cert_file = "/etc/ssl/c.pem"
key_file = "/etc/ssl/k.pem"
[plugins."io.containerd.grpc.v1.cri".registry.configs."own.test".tls]
insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.configs."own.test".auth]
username = "me"
password = "word"
`}))
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, p, `taken credentials of own.test -> images.credentials = '/credentials-containerd.json'`, `missing snapshotter = 'stargz'`,
		`missing discard_unpacked_layers = true`, `same sandbox_image`, `taken registry.mirrors."docker.io".endpoint`)
	if !p.Discarded || strings.Contains(strings.Join(lines(p), "\n"), "word") {
		t.Errorf("discarded: %v; the lines are %q", p.Discarded, lines(p))
	}
	wantText(t, contentOf(t, p, "/credentials-containerd.json"), `"own.test": {
      "password": "word",
      "username": "me"
    }`)
	wantText(t, contentOf(t, p, "/cribox.d/50-containerd.toml"), "credentials = '/credentials-containerd.json'")
	for name, want := range map[string]string{
		"docker.io": `server = 'https://registry-1.docker.io'

[host.'https://mirror.test:5000']
capabilities = ["pull", "resolve"]
ca = '/etc/ssl/mirror.pem'
client = [['/etc/ssl/c.pem', '/etc/ssl/k.pem']]

[host.'http://plain.test/v2/hub']
capabilities = ["pull", "resolve"]
override_path = true
`,
		"_default":      "\n[host.'https://all.test']\ncapabilities = [\"pull\", \"resolve\"]\n",
		"reg.test:5000": "server = 'http://reg.test:5000'\n",
		"own.test":      "server = 'https://own.test'\nskip_verify = true\n",
	} {
		text := contentOf(t, p, "/certs.d/"+name+"/hosts.toml")
		if _, text, _ = strings.Cut(text, "\n"); text != want {
			t.Errorf("hosts.toml of %s is\n%s\nwant\n%s", name, text, want)
		}
	}
}

// TestCRIO reads a file, one that adds to it, registries.conf, a policy and the list of images.
func TestCRIO(t *testing.T) {
	p, err := FromCRIO(host(t, map[string]string{
		"/etc/crio/crio.conf": "[crio.runtime]\npids_limit = 100\ncgroup_manager = \"systemd\"\nhooks_dir = [\"/hooks\"]\n",
		"/etc/crio/crio.conf.d/10-crun.conf": `[crio.runtime]
pids_limit = 2048
default_runtime = "crun"
log_size_max = -1
[crio.runtime.runtimes.crun]
runtime_path = "/usr/bin/crun"
monitor_path = "/usr/bin/conmon"
[crio.runtime.runtimes.kata]
runtime_type = "vm"
[crio.image]
pause_image = "registry.k8s.io/pause:3.10"
pinned_images = ["registry.test/agent:1"]
global_auth_file = "/etc/crio/auth.json"
insecure_registries = ["old.test"]
`,
		"/etc/containers/registries.conf": `unqualified-search-registries = ["quay.io"]
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "mirror.test/hub"
insecure = true
pull-from-mirror = "digest-only"
[[registry]]
location = "bad.test"
blocked = true
[[registry]]
prefix = "quay.io/team"
location = "quay.test/team"
`,
		"/etc/containers/registries.conf.d/000-shortnames.conf":  "[aliases]\nalpine = \"docker.io/library/alpine\"\n",
		"/etc/containers/policy.json":                            `{"default": [{"type": "reject"}]}`,
		"/var/lib/containers/storage/overlay-images/images.json": `[{"names": ["registry.test/app:1"]}, {"names": null}]`,
	}))
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, p, `taken runtime.pids_limit = 2048 -> containers.pids_limit = 2048`,
		`taken runtime.cgroup_manager = 'systemd' -> cgroup_driver = 'systemd'`, `missing runtime.hooks_dir`,
		`taken runtime.default_runtime = 'crun' -> default_runtime = 'crun'`, `missing runtime kata`,
		`same image.pause_image`, `taken insecure_registries: old.test`, `missing unqualified-search-registries`,
		`missing /etc/containers/registries.conf: bad.test, blocked`, `missing /etc/containers/registries.conf: quay.io/team`,
		`missing aliases of images ->  (1 names`, `taken image.global_auth_file = '/etc/crio/auth.json' -> images.credentials = '/etc/crio/auth.json'`,
		`taken /etc/containers/policy.json -> images.signature_policy = '/signatures-crio.toml'`)
	wantText(t, contentOf(t, p, "/signatures-crio.toml"), "[default]\nrequire = 'refuse'\n")
	wantText(t, contentOf(t, p, "/cribox.d/50-crio.toml"), "pids_limit = 2048", "[runtimes.crun]\npath = '/usr/bin/crun'")
	wantText(t, contentOf(t, p, "/certs.d/docker.io/hosts.toml"),
		"[host.'http://mirror.test/v2/hub']\ncapabilities = [\"pull\"]\noverride_path = true\nskip_verify = true\n")
	wantText(t, contentOf(t, p, "/certs.d/old.test/hosts.toml"), "server = 'http://old.test'\nskip_verify = true\n")
	if !slices.Equal(p.Pulls, []string{"registry.test/app:1"}) {
		t.Errorf("to be pulled: %q", p.Pulls)
	}
}

// TestRefusedSettings: what cribox refuses is not written, and the rest is.
func TestRefusedSettings(t *testing.T) {
	o := host(t, map[string]string{"/etc/crio/crio.conf": "[crio.runtime]\npids_limit = 7\ndefault_ulimits = [\"nonsense\"]\n"})
	o.Valid = func(b []byte) error {
		if strings.Contains(string(b), "nonsense") {
			return os.ErrInvalid
		}
		return nil
	}
	p, err := FromCRIO(o)
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, p, `missing runtime.default_ulimits = ['nonsense'] ->  (cribox refuses containers.ulimits = ['nonsense']`)
	if text := contentOf(t, p, "/cribox.d/50-crio.toml"); strings.Contains(text, "ulimits") || !strings.Contains(text, "pids_limit = 7") {
		t.Errorf("the file is\n%s", text)
	}
}

// TestJournal: a file of somebody else is kept, one of a migration is replaced, also after it was
// killed between journal and file, and undo takes away what nobody has changed.
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	open := func() *Journal {
		t.Helper()
		j, err := OpenJournal(filepath.Join(dir, "config.d"), Containerd, nil)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	files := func(content string) []File {
		return []File{{Path: path("certs.d/docker.io/hosts.toml"), Content: []byte(content), Mode: 0o640},
			{Path: path("theirs"), Content: []byte("ours"), Mode: 0o644}}
	}
	if err := os.WriteFile(path("theirs"), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	done := func(all []Result, err error) (words []string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			words = append(words, r.Done)
		}
		return words
	}
	for _, c := range []struct{ content, want string }{
		{"one", "written kept"}, {"one", "unchanged kept"}, {"two", "written kept"},
	} {
		if got := strings.Join(done(open().Write(files(c.content))), " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.content, got, c.want)
		}
	}
	killed := open()
	killed.hook = func(name string) {
		if name == "migrate.journal" {
			panic(name)
		}
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = killed.Write(files("three"))
	}()
	if got := strings.Join(done(open().Write(files("three"))), " "); got != "written kept" {
		t.Errorf("after it was killed: %s", got)
	}
	if info, err := os.Stat(path("certs.d/docker.io/hosts.toml")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the file is %v, %v", info, err)
	}
	if got := strings.Join(done(open().Undo()), " "); got != "removed" || !open().Empty() {
		t.Errorf("undo: %s", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 { // what was there before
		t.Errorf("undo leaves %v, %v", left, err)
	}
}

// TestPolicy takes the rules of a policy.json that cribox knows, and lists the others.
func TestPolicy(t *testing.T) {
	o := host(t, map[string]string{
		"/etc/crio/crio.conf": "[crio.image]\nsignature_policy = \"/etc/crio/policy.json\"\n",
		"/etc/crio/policy.json": `{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {
"": [{"type": "reject"}],
"a.test/team": [{"type": "sigstoreSigned", "keyPath": "/etc/keys/a.pub", "signedIdentity": {"type": "matchRepository"}}],
"b.test:5000": [{"type": "sigstoreSigned", "keyPaths": ["/etc/keys/b.pub", "/etc/keys/c.pub"]}],
"gpg.test": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/etc/keys/gpg"}],
"fulcio.test": [{"type": "sigstoreSigned", "fulcio": {"caPath": "/x"}}],
"remapped.test": [{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "remapIdentity"}}],
"two.test": [{"type": "sigstoreSigned", "keyPath": "/k"}, {"type": "signedBy"}],
"open.test": [{"type": "insecureAcceptAnything"}],
"*.wild.test": [{"type": "reject"}],
"a.test/team/app:1": [{"type": "reject"}]}}}`,
	})
	p, err := FromCRIO(o)
	if err != nil {
		t.Fatal(err)
	}
	const file = "missing /etc/crio/policy.json: "
	wantLines(t, p, "taken /etc/crio/policy.json -> images.signature_policy", file+"gpg.test ->  (signedBy: cribox knows",
		file+"fulcio.test ->  (sigstoreSigned without keyPath", file+"remapped.test ->  (sigstoreSigned with the identity remapIdentity",
		file+"two.test ->  (2 requirements at once", file+"*.wild.test", file+"a.test/team/app:1")
	const unknown = "require = 'refuse'\n"
	wantText(t, contentOf(t, p, "/signatures-crio.toml"), "[default]\nrequire = 'refuse'\n",
		"[prefix.'a.test/team']\nkeys = ['/etc/keys/a.pub']\nmatch_repository = true\nrequire = 'key'\n",
		"[prefix.'b.test:5000']\nkeys = ['/etc/keys/b.pub', '/etc/keys/c.pub']\nmatch_repository = true\nrequire = 'key'\n",
		"[prefix.'gpg.test']\nmode = 'warn'\n"+unknown, "[prefix.'fulcio.test']\nmode = 'warn'\n"+unknown,
		"[prefix.'two.test']\nmode = 'warn'\n"+unknown, "[prefix.'open.test']\nrequire = 'accept'\n")
	o.Policy = "/etc/cribox/own.toml"
	if p, err = FromCRIO(o); err != nil {
		t.Fatal(err)
	}
	wantLines(t, p, "missing /etc/crio/policy.json ->  (cribox has a policy of its own")
}

// TestCredentialsOfTheNode: a file of credentials that cribox reads already is not replaced.
func TestCredentialsOfTheNode(t *testing.T) {
	o := host(t, map[string]string{
		"/etc/containerd/config.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"own.test\".auth]\n" +
			"identitytoken = \"word\"\n",
		"/etc/crio/crio.conf": "[crio.image]\nglobal_auth_file = \"/etc/crio/auth.json\"\n",
		"/own.json":           "{}",
	})
	o.Credentials = filepath.Join(o.Host, "own.json")
	for from, plan := range map[string]func(Options) (*Plan, error){"credentials of own.test": FromContainerd,
		"image.global_auth_file = '/etc/crio/auth.json'": FromCRIO} {
		p, err := plan(o)
		if err != nil {
			t.Fatal(err)
		}
		if wantLines(t, p, "missing "+from); len(p.Files) > 0 {
			t.Errorf("%s: files %v", from, p.Files)
		}
	}
}
