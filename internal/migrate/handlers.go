package migrate

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/cribox/cribox/config"
)

// handler is an OCI runtime of the other runtime's file, by the name that a RuntimeClass asks for.
type handler struct {
	kind    string // runtime_type
	program string
	base    string // a file with an OCI spec, under whose limits containers start
	from    []string
	values  map[string]any // other keys of cribox's table
	lacks   []string       // settings without a counterpart
}

func (h *handler) set(key string, value any) {
	if h.values == nil {
		h.values = map[string]any{}
	}
	h.values[key] = value
}

// handlersOf returns how a rule changes the handler that its setting is of.
func handlersOf(all map[string]*handler) func(act func(h *handler, s setting)) func(*Plan, setting, string) {
	return func(act func(h *handler, s setting)) func(*Plan, setting, string) {
		return func(_ *Plan, s setting, name string) {
			if all[name] == nil {
				all[name] = &handler{}
			}
			if !s.unset() {
				all[name].from = append(all[name].from, s.String())
				act(all[name], s)
			}
		}
	}
}

// handlerRules collects the runtimes, which takeHandlers takes when all are known.
func handlerRules(all map[string]*handler) []rule {
	of := handlersOf(all)
	known := func(*handler, setting) {}
	lacks := func(note string) func(*handler, setting) {
		return func(h *handler, s setting) { h.lacks = append(h.lacks, s.String()+": "+note) }
	}
	const at = "containerd.runtimes.*."
	return []rule{
		{"containerd.default_runtime_name", takesHandler},
		{at + "runtime_type", of(func(h *handler, s setting) { h.kind = s.text() })},
		{at + "options.BinaryName", of(func(h *handler, s setting) { h.program = s.text() })},
		{at + "options.SystemdCgroup", func(p *Plan, s setting, name string) {
			of(known)(p, s, name)
			p.takeDriver(s, s.yes())
		}},
		{at + "privileged_without_host_devices", of(func(h *handler, s setting) {
			h.set("privileged_without_host_devices", s.yes())
		})},
		{at + "base_runtime_spec", of(func(h *handler, s setting) { h.base = s.text() })},
		{at + "sandboxer", of(func(h *handler, s setting) {
			if s.text() != "podsandbox" {
				lacks("cribox makes pods itself")(h, s)
			}
		})},
		{at + "io_type", of(func(h *handler, s setting) {
			if s.text() != "fifo" {
				lacks("output goes through FIFOs")(h, s)
			}
		})},
		{at + "snapshotter", of(func(h *handler, s setting) {
			if s.text() != "overlayfs" {
				lacks("layers are on overlayfs")(h, s)
			}
		})},
		{at + "runtime_path", of(lacks("it is a shim of containerd"))},
		{at + "runtime_engine", of(func(h *handler, s setting) { h.program = s.text() })},
		{at + "runtime_root", of(known)},
		{at + "options.Root", of(known)},
		{at + "options.NoPivotRoot", of(lacks("the OCI runtime pivots"))},
		{at + "options.NoNewKeyring", of(lacks("each container has a new keyring"))},
		{at + "options.ShimCgroup", of(lacks("one shim serves all pods"))},
		{at + "options.IoUid", of(lacks("root owns the FIFOs"))},
		{at + "options.IoGid", of(lacks("root owns the FIFOs"))},
		{at + "options.*", of(lacks("an option of containerd's shim"))},
		{at + "cni_conf_dir", of(lacks("all handlers share [network] conf_dir"))},
		{at + "cni_max_conf_num", of(known)},
		{at + "pod_annotations", of(lacks("annotations of pods are not given to the OCI runtime by a list"))},
		{at + "container_annotations", of(lacks("annotations of containers are not given to the OCI runtime by a list"))},
		{at + "cgroup_writable", of(lacks("/sys/fs/cgroup is read-only but for privileged containers"))},
		{at + "privileged_without_host_devices_all_devices_allowed", of(lacks("the devices that it asks for are allowed"))},
	}
}

func takesHandler(p *Plan, s setting, _ string) {
	if s.text() == "" || s.text() == config.Default().DefaultRuntime {
		same("the default of cribox is the same")(p, s, "")
		return
	}
	p.take(s.String(), "default_runtime", s.text())
}

// takeDriver takes who makes cgroups.
func (p *Plan) takeDriver(s setting, systemd bool) {
	driver := config.DriverCgroupfs
	if systemd {
		driver = config.DriverSystemd
	}
	if old, ok := p.settings["cgroup_driver"]; ok && old != driver {
		p.add(Missing, s.String(), "", "all handlers have one cgroup_driver, which is %v", old)
		return
	}
	p.take(s.String(), "cgroup_driver", driver)
}

// dialect is what differs between the runtimes of the two sources.
type dialect struct {
	takes   func(kind string) bool // of the programs that cribox can execute
	refusal string
	byName  bool // a runtime without a program is the program of its name
}

func cribox(of Source) dialect {
	if of == CRIO {
		return dialect{
			takes:   func(kind string) bool { return kind == "" || kind == "oci" },
			refusal: "cribox executes programs with the command line of runc, and no shims",
			byName:  true,
		}
	}
	return dialect{
		takes: func(kind string) bool {
			return slices.Contains([]string{"", "io.containerd.runc.v2", "io.containerd.runc.v1"}, kind)
		},
		refusal: "cribox executes programs with the command line of runc, and none of containerd's shims",
	}
}

var handlerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

// takeHandlers takes the runtimes that cribox can execute.
func (p *Plan) takeHandlers(o Options, all map[string]*handler, d dialect) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		h := all[name]
		from := "runtime " + name
		if len(h.from) > 0 {
			from += " (" + strings.Join(h.from, ", ") + ")"
		}
		switch {
		case !handlerName.MatchString(name):
			p.add(Missing, from, "", "no RuntimeClass can name it")
			continue
		case !d.takes(h.kind):
			p.missingHandler(from, name, d.refusal)
			continue
		}
		if h.program == "" && d.byName {
			h.program = name
		}
		if h.base != "" {
			p.baseSpec(o, h)
		}
		for _, s := range h.lacks {
			p.add(Missing, "runtime "+name, "", "%s", s)
		}
		if name == config.Default().DefaultRuntime && (h.program == "" || h.program == "runc") && len(h.values) == 0 {
			p.add(Same, from, "", "the default of cribox is the same")
			continue
		}
		h.set("path", orDefault(h.program, "runc"))
		for _, key := range slices.Sorted(maps.Keys(h.values)) {
			p.take(from, "runtimes\x00"+name+"\x00"+key, h.values[key])
			p.Lines[len(p.Lines)-1].To = fmt.Sprintf("[runtimes.%s] %s = %s", name, key, text(h.values[key]))
		}
	}
}

func orDefault(value, other string) string {
	if value == "" {
		return other
	}
	return value
}

// missingHandler says that a runtime is not taken, and takes back that it is the default one.
func (p *Plan) missingHandler(from, name, why string) {
	if p.settings["default_runtime"] == name {
		delete(p.settings, "default_runtime")
		p.Lines = slices.DeleteFunc(p.Lines, func(l Line) bool { return strings.HasPrefix(l.To, "default_runtime = ") })
		why += "; it was the default, and pods without a RuntimeClass get runc now"
	}
	p.add(Missing, from, "", "%s: pods of its RuntimeClass cannot run here", why)
}

// baseSpec takes the limits of a base OCI spec.
func (p *Plan) baseSpec(o Options, h *handler) {
	from := "base_runtime_spec = " + text(h.base)
	b, err := readFile(o.path(h.base))
	var spec struct {
		Process struct {
			Rlimits []struct {
				Type       string
				Soft, Hard uint64
			}
		}
	}
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	if err != nil {
		p.add(Missing, from, "", "%v", err)
		return
	}
	p.Read = append(p.Read, o.path(h.base))
	limits := []string{}
	for _, l := range spec.Process.Rlimits {
		name := strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_"))
		limits = append(limits, fmt.Sprintf("%s=%s:%s", name, limit(l.Soft), limit(l.Hard)))
	}
	if len(limits) > 0 {
		h.set("ulimits", limits)
	}
	p.add(Missing, from, "", "its limits (rlimits) are taken; everything else in it has no counterpart")
}

func limit(n uint64) string {
	if n == ^uint64(0) {
		return "unlimited"
	}
	return fmt.Sprint(n)
}
