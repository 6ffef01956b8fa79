package config

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigErrorsNameKeyAndLine(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no TOML", "listen = \n", "line 1"},
		{"unknown key", "root = '/r'\nlog_lvel = 'info'\n", `line 2: unknown key "log_lvel"`},
		{"unknown key in a table", "[network]\n\ndefalt = true\n", `line 3: unknown key "network.defalt"`},
		{"unknown table", "[netwrk]\ndefault = true\n", "netwrk"},
		{"wrong type", "[network]\ndefault = 'yes'\n", "line 2"},
		{"bad level", "root = '/r'\n\nlog_level = 'loud'\n", `line 3: key "log_level"`},
		{"relative root", "root = 'var'\n", `line 1: key "root"`},
		{"not unix", "listen = 'tcp://127.0.0.1:1'\n", `line 1: key "listen"`},
		{"handler that is none", "default_runtime = 'kata'\n", `line 1: key "default_runtime"`},
		{"bad range", "[network]\nno_masquerade = ['10.0.0.0/8', 'x']\n", `line 2: key "network.no_masquerade"`},
		{"bad cgroup driver", "root = '/r'\ncgroup_driver = 'systemctl'\n", `line 2: key "cgroup_driver"`},
		{"bad subnet", "[network]\nsubnet = '10.0.0.0'\n", `line 2: key "network.subnet"`},
		{"bad pause image", "pause_image = 'UPPER CASE'\n", `key "pause_image"`},
		{"bad pinned image", "[images]\n\npinned = ['*/pause:*', 'UPPER CASE*']\n", `line 3: key "images.pinned": "UPPER CASE*"`},
		{"relative registries", "[images]\nregistry_config = '/etc/a:b'\n", `line 2: key "images.registry_config": "b" is not`},
		{"relative credentials", "[images]\ncredentials = 'c.json'\n", `line 2: key "images.credentials": "c.json" is not`},
		{"relative helpers", "[images]\ncredential_helpers_dir = 'bin'\n", `line 2: key "images.credential_helpers_dir"`},
		{"relative policy", "[images]\nsignature_policy = 's.toml'\n", `line 2: key "images.signature_policy"`},
		{"no downloads", "[images]\ndownloads = 0\n", `line 2: key "images.downloads": 0 is not between 1 and 64`},
		{"unpacks below nothing", "[images]\nunpacks = -1\n", `line 2: key "images.unpacks"`},
		{"no time", "[images]\nstall_time = '30'\n", `line 2`},
		{"time of a number", "[images]\nstall_time = 30\n", `line 2`},
		{"no stall time", "[images]\nstall_time = '10ms'\n", `line 2: key "images.stall_time": 10ms is less than one second`},
		{"size of a layer without a unit", "[images]\nlayer_size_max = 64\n", `line 2: key "images.layer_size_max"`},
		{"size of an image without a unit", "[images]\nimage_size_max = 64\n", `line 2: key "images.image_size_max"`},
		{"few files", "[images]\nlayer_files_max = 1\n", `line 2: key "images.layer_files_max"`},
		{"no ulimit", "[containers]\nulimits = ['files=1']\n", `line 2: key "containers.ulimits": "files=1" does not set one of as, core`},
		{"ulimit of a word", "[containers]\nulimits = ['nofile=many']\n", `"many" is neither a number nor unlimited`},
		{"ulimit without a value", "[containers]\nulimits = ['nofile']\n", `line 2: key "containers.ulimits"`},
		{"ulimit upside down", "[containers]\nulimits = ['core=0', 'nofile=2:1']\n", `"nofile=2:1": the soft limit is above the hard limit`},
		{"ulimit twice", "[containers]\nulimits = ['core=0', 'core=1']\n", "core is set twice"},
		{"ulimit of a handler", "[runtimes.runc]\nulimits = ['core=-1']\n", `key "runtimes": [runtimes.runc] ulimits`},
		{"no size", "[containers]\nshm_size = '64MB'\n", `line 2`},
		{"size beyond 63 bits", "[containers]\nshm_size = '9999999999Gi'\n", `line 2`},
		{"negative size", "[containers]\nshm_size = -1\n", `line 2`},
		{"shm without a limit", "[containers]\nshm_size = 0\n", `line 2: key "containers.shm_size"`},
		{"missing paths", "[containers]\nhost_path_missing = 'mkdir'\n", `line 2: key "containers.host_path_missing": "mkdir" is neither create nor refuse`},
		{"relative path", "[containers]\nhost_path_never_created = ['/a', 'b']\n", `line 2: key "containers.host_path_never_created"`},
		{"log too small", "[containers]\nlog_size_max = '1Ki'\n", `line 2: key "containers.log_size_max"`},
		{"metrics for everybody", "[metrics]\nlisten = '0.0.0.0:9421'\n", `line 2: key "metrics.listen": 0.0.0.0 is not on the loopback`},
		{"metrics at a name", "[metrics]\nlisten = 'localhost:9421'\n", `line 2: key "metrics.listen": "localhost:9421" is neither`},
		{"metrics at a relative path", "[metrics]\nlisten = 'unix://run/m.sock'\n", `line 2: key "metrics.listen": "unix://run/m.sock" is not`},
		{"traces to nowhere", "[tracing]\nendpoint = 'collector'\n", `line 2: key "tracing.endpoint": "collector" is not`},
		{"traces to a path", "[tracing]\nendpoint = 'http://c:4317/v1'\n", `line 2: key "tracing.endpoint"`},
		{"more than all", "[tracing]\nsampling_ratio = 1.5\n", `line 2: key "tracing.sampling_ratio": 1.5 is not`},
		{"negative pids", "[containers]\npids_limit = -1\n", `line 2: key "containers.pids_limit"`},
		{"state too long for sockets", "state = '/run/" + strings.Repeat("long", 30) + "'\n", `key "state"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeConfig(t, c.text)
			_, err := Read(Flags{File: path})
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %q does not name %s and %q", err, path, c.want)
			}
		})
	}
}

func TestMissingConfigFile(t *testing.T) {
	if _, err := Read(Flags{File: "/nowhere/config.toml"}); err == nil {
		t.Fatal("a configuration that was named and is missing was accepted")
	}
}

func TestFlagsWin(t *testing.T) {
	path := writeConfig(t, "root = '/file/root'\nstate = '/file/state'\n")
	c, err := Read(Flags{File: path, Root: "/flag/root", State: "/flag/state"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/flag/root" || c.State != "/flag/state" || c.Listen != "unix:///flag/state/cribox.sock" {
		t.Fatalf("%+v", c)
	}
}

// What `cribox config` prints can be used as a file, says the same, and documents every key.
func TestPrintedConfigIsAConfig(t *testing.T) {
	want := Default()
	b, err := want.Print()
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(writeConfig(t, string(b)))
	if err != nil {
		t.Fatal(err)
	}
	got.files = nil
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("printed and read again:\n%+v\nwant\n%+v", got, want)
	}
	keys, comments := 0, 0
	for line := range strings.Lines(string(b)) {
		switch {
		case strings.HasPrefix(line, "#"):
			comments++
		case strings.Contains(line, "="):
			keys++
		}
	}
	if comments < keys {
		t.Fatalf("%d keys, %d comments:\n%s", keys, comments, b)
	}
}

func TestInstancesDiffer(t *testing.T) {
	a, b := Default(), Default()
	b.State = "/run/other"
	if a.Instance() == b.Instance() || len(a.Instance()) != 6 {
		t.Fatalf("instances %q and %q", a.Instance(), b.Instance())
	}
}

func TestScopeNames(t *testing.T) {
	c, other, third := Default(), Default(), Default()
	c.State, other.State, third.State = c.State+"/", "/run/other", "/srv/run/other"
	if c.Scopes(false) != nil {
		t.Error("scopes without systemd")
	}
	if name := c.Scopes(true)("shim"); name != "cribox-shim.scope" {
		t.Errorf("the default instance's shim is in %s", name)
	}
	names := map[string]bool{}
	for _, c := range []Config{c, other, third} {
		names[c.Scopes(true)("shim")] = true
		names[c.Scopes(true)("logger")] = true
	}
	if name := other.Scopes(true)("logger"); len(names) != 6 || name != "cribox-logger-"+other.Instance()+".scope" {
		t.Errorf("scopes of three instances: %v", names)
	}
}

// The documentation shows the defaults as they are.
func TestDocumentedConfig(t *testing.T) {
	doc, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Default().Print()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "```toml\n"+string(b)+"```") {
		t.Fatalf("docs/configuration.md does not hold what `cribox config` prints:\n%s", b)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1": 1, "1023": 1023, "1Ki": 1 << 10, "1536Ki": 1536 << 10, "64Mi": 64 << 20, "3Gi": 3 << 30} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s is %d (%v), want %d", text, got, err, want)
		}
		if back, err := got.MarshalText(); err != nil || string(back) != text {
			t.Errorf("%d is written as %s (%v), want %s", got, back, err, text)
		}
	}
}

// A handler's own limits win name by name.
func TestUlimits(t *testing.T) {
	c := Default()
	c.Containers.Ulimits = []string{"nofile=1024:4096", "core=0"}
	got := c.Rlimits(Runtime{Ulimits: []string{"memlock=unlimited", "nofile=100"}})
	want := []specs.POSIXRlimit{
		{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_MEMLOCK", Soft: math.MaxUint64, Hard: math.MaxUint64}, {Type: "RLIMIT_NOFILE", Soft: 100, Hard: 100},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("limits %v, want %v", got, want)
	}
}

// writeDropIn puts a file beside the configuration that is read over it.
func writeDropIn(t *testing.T, path, name, text string) string {
	t.Helper()
	file := filepath.Join(path+".d", name)
	if err := errors.Join(os.MkdirAll(path+".d", 0o755), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

// What a vendor drops in adds to the file key by key, in the order of the names.
func TestDropIns(t *testing.T) {
	path := writeConfig(t, "root = '/r'\n[containers]\npids_limit = 10\nshm_size = '1Mi'\n[runtimes.runc]\npath = '/a/runc'\n")
	writeDropIn(t, path, "20-late.toml", "[containers]\npids_limit = 30\n")
	writeDropIn(t, path, "10-vendor.toml", "default_runtime = 'vendor'\n[containers]\npids_limit = 20\n[runtimes.vendor]\npath = '/v'\n"+
		"[runtimes.runc]\nulimits = ['core=0']\n")
	writeDropIn(t, path, "30-old.toml.bak", "root = '/no'\n")
	writeDropIn(t, path, ".31-hidden.toml", "root = '/no'\n")
	c, err := Read(Flags{File: path})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Runtime{"runc": {Path: "/a/runc", Ulimits: []string{"core=0"}}, "vendor": {Path: "/v"}}
	if c.Root != "/r" || c.DefaultRuntime != "vendor" || c.Containers.PidsLimit != 30 || c.Containers.ShmSize != 1<<20 || !reflect.DeepEqual(c.Runtimes, want) {
		t.Fatalf("%+v", c)
	}
}

// An error names the file that had the last word, and the line in it.
func TestDropInErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "# note\nnothing = 1\n", `line 2: unknown key "nothing"`},
		{"bad value", "\n[containers]\npids_limit = -1\n", `line 3: key "containers.pids_limit"`},
		{"not TOML", "x\n", "line 1"},
	} {
		path := writeConfig(t, "[containers]\npids_limit = 1\n")
		file := writeDropIn(t, path, "a.toml", c.text)
		_, err := Read(Flags{File: path})
		if err == nil || !strings.Contains(err.Error(), file+", "+c.want) {
			t.Errorf("%s: error %v does not name %s, %s", c.name, err, file, c.want)
		}
	}
}

func TestChangedKeys(t *testing.T) {
	a, b := Default(), Default()
	if got := changed(a, b); got != nil {
		t.Errorf("nothing changed, but %v", got)
	}
	b.Root, b.Network.Default, b.Containers.PidsLimit, b.Runtimes["x"] = "/x", true, 7, Runtime{Path: "/x"}
	if got, want := changed(a, b), []string{"root", "network.default", "containers.pids_limit", "runtimes"}; !reflect.DeepEqual(got, want) {
		t.Errorf("changed %v, want %v", got, want)
	}
}

// A running daemon takes over what it can; the rest keeps its old value and is named.
func TestReload(t *testing.T) {
	old, next := Default(), Default()
	next.Root, next.LogLevel, next.Containers.PidsLimit = "/x", "debug", 7
	next.Images.Pinned, next.Images.Downloads = []string{"a"}, 9
	now, late := Reload(old, next)
	if want := []string{"root", "images.downloads"}; !reflect.DeepEqual(late, want) {
		t.Errorf("%v need a restart, want %v", late, want)
	}
	want := old
	want.LogLevel, want.Containers.PidsLimit, want.Images.Pinned = "debug", 7, []string{"a"}
	if !reflect.DeepEqual(now, want) {
		t.Errorf("in effect is %+v, want %+v", now, want)
	}
}

func TestCgroupDriver(t *testing.T) {
	for _, row := range []struct {
		asked         string
		runs          bool
		systemd, good bool
	}{
		{"auto", true, true, true}, {"auto", false, false, true}, {"cgroupfs", true, false, true}, {"cgroupfs", false, false, true},
		{"systemd", true, true, true}, {"systemd", false, false, false},
	} {
		c := Default()
		c.CgroupDriver = row.asked
		if got, err := c.SystemdCgroup(row.runs); got != row.systemd || (err == nil) != row.good {
			t.Errorf("%+v: %t, %v", row, got, err)
		}
	}
}
