package migrate

import (
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// registries collects what a file says about registries, and makes folders with hosts.toml of it.
type registries struct {
	plan    *Plan
	options Options
	folders []string                     // as containerd's certs.d, to be copied
	named   bool                         // the file names the folders
	mirrors map[string][]mirror          // by registry, "*" for all others
	servers map[string]transport         // by host and port
	secrets map[string]map[string]string // credentials by host, as docker names them
}

// mirror is a host that has what a registry has.
type mirror struct {
	url  string
	pull string // capabilities in the form of hosts.toml, "" for all
}

// transport is how a host is spoken to.
type transport struct {
	skipVerify    bool
	ca, cert, key string
	plain         bool // http
}

func newRegistries(p *Plan, o Options) *registries {
	return &registries{plan: p, options: o, mirrors: map[string][]mirror{}, servers: map[string]transport{},
		secrets: map[string]map[string]string{}}
}

func (r *registries) configPath(_ *Plan, s setting, _ string) {
	for _, folder := range filepath.SplitList(s.text()) {
		r.folders, r.named = append(r.folders, folder), true
	}
}

func (r *registries) mirror(p *Plan, s setting, registry string) {
	if _, ok := r.mirrors[registry]; !ok {
		r.mirrors[registry] = nil
	}
	for _, endpoint := range s.list() {
		r.mirrors[registry] = append(r.mirrors[registry], mirror{url: endpoint})
	}
	p.add(Taken, s.String(), "registry "+registry, "")
}

func (r *registries) tls(p *Plan, s setting, host string) {
	if s.unset() {
		return
	}
	t := r.servers[host]
	switch s.path[len(s.path)-1] {
	case "insecure_skip_verify":
		t.skipVerify = s.yes()
	case "ca_file":
		t.ca = s.text()
	case "cert_file":
		t.cert = s.text()
	case "key_file":
		t.key = s.text()
	}
	r.servers[host] = t
	p.add(Taken, s.String(), "registry "+host, "")
}

// finish makes the folders. Those of defaults are read where the file names none.
func (r *registries) finish(defaults ...string) error {
	if !r.named && len(r.mirrors) == 0 {
		r.folders = defaults
	}
	seen := map[string]bool{}
	for _, folder := range r.folders {
		registries, err := filesIn(r.options.path(folder))
		if err != nil {
			return err
		}
		for _, dir := range registries {
			if name := filepath.Base(dir); !seen[name] { // the first folder that has it is read
				seen[name] = true
				if err := r.copy(dir, name, folder); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range r.names() {
		file := filepath.Join(r.options.Registries, folderName(name), "hosts.toml")
		if slices.ContainsFunc(r.plan.Files, func(f File) bool { return f.Path == file }) {
			continue // containerd refuses both
		}
		r.plan.Files = append(r.plan.Files, File{Path: file, Content: []byte(r.hosts(name)), Mode: 0o644})
	}
	return r.credentials()
}

// copy takes the folder of one registry.
func (r *registries) copy(dir, name, folder string) error {
	files, refers := 0, false
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := readFile(path)
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		files++
		refers = refers || strings.Contains(string(b), `"`+folder+"/")
		r.plan.Read = append(r.plan.Read, path)
		r.plan.Files = append(r.plan.Files, File{Path: filepath.Join(r.options.Registries, name, inside), Content: b,
			Mode: info.Mode().Perm()})
		return nil
	})
	if err != nil || files == 0 {
		return err
	}
	from := filepath.Join(folder, name)
	r.plan.add(Taken, from, filepath.Join(r.options.Registries, name), "%d files", files)
	if refers {
		r.plan.add(Missing, from, "", "a file in it names %s: keep that folder, or change the path in %s",
			folder, filepath.Join(r.options.Registries, name))
	}
	return nil
}

// names returns the registries that need a hosts.toml.
func (r *registries) names() []string {
	names := map[string]bool{}
	for name := range r.mirrors {
		names[name] = true
	}
	for host := range r.servers {
		if !r.isMirror(host) {
			names[host] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// isMirror reports whether the host is known as the mirror of some registry only.
func (r *registries) isMirror(host string) bool {
	if _, ok := r.mirrors[host]; ok {
		return false
	}
	for _, all := range r.mirrors {
		for _, m := range all {
			if u, err := url.Parse(m.url); err == nil && u.Host == host {
				return true
			}
		}
	}
	return false
}

// folderName is the folder of a registry.
func folderName(registry string) string {
	if registry == "*" {
		return "_default"
	}
	return registry
}

// hosts returns the hosts.toml of a registry.
func (r *registries) hosts(registry string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by `cribox migrate %s`.\n", r.plan.Source)
	mirrors := slices.Clone(r.mirrors[registry])
	if registry != "*" {
		server := "https://" + registry
		if registry == "docker.io" {
			server = "https://registry-1.docker.io"
		}
		if r.servers[registry].plain {
			server = "http://" + registry
		}
		for i, m := range mirrors { // the registry itself, by another scheme
			if u, err := url.Parse(m.url); err == nil && u.Host == registry && strings.Trim(u.Path, "/") == "" {
				server = strings.TrimSuffix(m.url, "/")
				if i == len(mirrors)-1 {
					mirrors = mirrors[:i]
				}
			}
		}
		fmt.Fprintf(&b, "server = %s\n", text(server))
		b.WriteString(r.servers[registry].toml())
	}
	for _, m := range mirrors {
		u, err := url.Parse(m.url)
		if err != nil || u.Host == "" {
			r.plan.add(Missing, "mirror "+m.url+" of "+registry, "", "it is not the URL of a host")
			continue
		}
		capabilities := `["pull", "resolve"]`
		if m.pull != "" {
			capabilities = m.pull
		}
		fmt.Fprintf(&b, "\n[host.%s]\ncapabilities = %s\n", text(strings.TrimSuffix(m.url, "/")), capabilities)
		if strings.Trim(u.Path, "/") != "" {
			b.WriteString("override_path = true\n") // nothing is added to the path
		}
		b.WriteString(r.servers[u.Host].toml())
	}
	return b.String()
}

// toml returns the keys of hosts.toml for the transport.
func (t transport) toml() string {
	var b strings.Builder
	if t.skipVerify {
		b.WriteString("skip_verify = true\n")
	}
	if t.ca != "" {
		fmt.Fprintf(&b, "ca = %s\n", text(t.ca))
	}
	switch {
	case t.cert != "" && t.key != "":
		fmt.Fprintf(&b, "client = [[%s, %s]]\n", text(t.cert), text(t.key))
	case t.cert != "":
		fmt.Fprintf(&b, "client = %s\n", text(t.cert))
	}
	return b.String()
}
