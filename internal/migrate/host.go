package migrate

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// containerdHost says what becomes of containerd's settings outside of the CRI, and of what the host
// has for containerd beside its file.
func (p *Plan) containerdHost(o Options, c map[string]any) {
	p.topLevel(c)
	plugins, _ := c["plugins"].(map[string]any)
	cri := []string{pluginCRI, pluginImages, pluginRuntime, pluginTransfer, "cri"}
	for _, name := range slices.Sorted(maps.Keys(plugins)) {
		table, _ := plugins[name].(map[string]any)
		if !slices.Contains(cri, name) {
			p.plugin(name, table)
		}
	}
	if exists(o.path("/sys/fs/selinux/enforce")) && p.settings["containers.selinux"] == nil {
		p.take("enable_selinux is not set, and containerd labels nothing", "containers.selinux", false)
	}
	for folder, what := range map[string]string{
		"/opt/nri/plugins": "NRI plugins", "/etc/nri/conf.d": "NRI plugins",
		"/opt/containerd/image-verifier/bin": "programs that verify images",
	} {
		if exists(o.path(folder)) {
			p.add(Missing, folder, "", "%s are not executed", what)
		}
	}
	p.unit(o, "containerd")
}

func (p *Plan) topLevel(c map[string]any) {
	levels := map[string]string{"trace": "debug", "fatal": "error", "panic": "error"}
	rules := []rule{
		{"version", func(*Plan, setting, string) {}},
		{"root", same("images are taken over from there; cribox has a folder of its own")},
		{"state", same("cribox has a folder of its own")},
		{"temp", same("cribox has folders of its own")},
		{"disabled_plugins", same("concerns the inside of containerd")},
		{"required_plugins", same("concerns the inside of containerd")},
		{"oom_score", missing("OOMScoreAdjust= of the unit cribox.service")},
		{"cgroup.path", missing("Slice= of the unit cribox.service")},
		{"debug.level", func(p *Plan, s setting, _ string) {
			level := s.text()
			if l, ok := levels[level]; ok {
				level = l
			}
			if level != "" && level != "info" {
				p.take(s.String(), "log_level", level)
			}
		}},
		{"debug.format", sameIf("text", "the log is text", "the log is text")},
		{"metrics.address", func(p *Plan, s setting, _ string) { p.metrics(s) }},
		{"timeouts.*", same("cribox has its own limits")},
		{"proxy_plugins.*.address", missing("a plugin of containerd, such as a snapshotter")},
		{"proxy_plugins.*.type", func(*Plan, setting, string) {}},
		{"stream_processors.*.path", sameIf("ctd-decoder", "for encrypted layers only, which cannot be pulled",
			"layers of other formats cannot be pulled")},
		{"stream_processors.*.accepts", func(*Plan, setting, string) {}},
		{"stream_processors.*.args", func(*Plan, setting, string) {}},
		{"stream_processors.*.env", func(*Plan, setting, string) {}},
		{"stream_processors.*.returns", func(*Plan, setting, string) {}},
	}
	for _, part := range []string{"grpc", "ttrpc", "debug", "metrics", "proxy_plugins"} { // the sockets of containerd
		for _, key := range []string{"address", "uid", "gid", "max_recv_message_size", "max_send_message_size"} {
			rules = append(rules, rule{part + "." + key, same("cribox has sockets of its own")})
		}
	}
	for _, s := range settingsOf(c) {
		if s.path[0] != "plugins" {
			p.apply(rules, s)
		}
	}
}

// metrics takes the address of the metrics, which other machines cannot reach.
func (p *Plan) metrics(s setting) {
	if s.text() == "" {
		return
	}
	if at, err := netip.ParseAddrPort(s.text()); err == nil && at.Addr().IsLoopback() {
		p.take(s.String(), "metrics.listen", s.text())
		p.add(Missing, s.String(), "", "the series have other names, see docs/monitoring.md")
		return
	}
	p.add(Missing, s.String(), "", "metrics are served on the loopback or a socket only: [metrics] listen, and a proxy")
}

// plugin says what becomes of a part of containerd that is not the CRI's.
func (p *Plan) plugin(name string, table map[string]any) {
	switch name {
	case "io.containerd.tracing.processor.v1.otlp":
		p.table(name, table, []rule{
			{"endpoint", takes("tracing.endpoint")},
			{"protocol", sameIf("grpc", "OTLP over gRPC", "traces are sent over gRPC")},
			{"insecure", same("tracing.endpoint without https:// is without TLS")},
		})
		return
	case "io.containerd.internal.v1.tracing":
		p.table(name, table, []rule{
			{"sampling_ratio", takes("tracing.sampling_ratio")},
			{"trace_sampling_ratio", takes("tracing.sampling_ratio")},
			{"service_name", same("traces are of the service cribox")},
		})
		return
	case "io.containerd.server.v1.metrics":
		p.table(name, table, []rule{{"address", func(p *Plan, s setting, _ string) { p.metrics(s) }}})
		return
	case "io.containerd.nri.v1.nri":
		if off, _ := table["disable"].(bool); off {
			p.add(Same, name+".disable = true", "", "there is no NRI")
		}
		return
	}
	set := slices.DeleteFunc(settingsOf(table), setting.unset)
	if len(set) > 0 {
		p.add(Same, fmt.Sprintf("plugin %s (%d settings)", name, len(set)), "", "concerns the inside of containerd")
	}
}

func (p *Plan) table(name string, table map[string]any, rules []rule) {
	for _, s := range settingsOf(table) {
		before := len(p.Lines)
		p.apply(rules, s)
		for i := before; i < len(p.Lines); i++ {
			p.Lines[i].From = name + ": " + p.Lines[i].From
		}
	}
}

// unit says what files of an administrator add to the runtime's unit. A proxy is the usual one.
func (p *Plan) unit(o Options, runtime string) {
	folder := "/etc/systemd/system/" + runtime + ".service.d"
	files, err := filesIn(o.path(folder))
	if err != nil {
		p.add(Missing, folder, "", "%v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || filepath.Ext(file) != ".conf" {
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
			line := strings.TrimSpace(lines.Text())
			if line == "" || strings.ContainsRune("#;[", rune(line[0])) {
				continue
			}
			key, _, _ := strings.Cut(line, "=")
			p.add(Missing, filepath.Join(folder, filepath.Base(file))+": "+key+"=", "",
				"give it to cribox if it needs it: `systemctl edit cribox`")
		}
	}
}
