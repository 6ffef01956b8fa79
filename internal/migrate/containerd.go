package migrate

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Where containerd keeps things unless its file says something else.
const (
	containerdFile = "/etc/containerd/config.toml"
	containerdRoot = "/var/lib/containerd"
)

// pluginCRI and the others are the parts of containerd that a kubelet talks to. Version 2 of the file
// has one table for them, and version 3 several.
const (
	pluginCRI      = "io.containerd.grpc.v1.cri"
	pluginImages   = "io.containerd.cri.v1.images"
	pluginRuntime  = "io.containerd.cri.v1.runtime"
	pluginTransfer = "io.containerd.transfer.v1.local"
)

// FromContainerd makes the plan for a node that containerd runs.
func FromContainerd(o Options) (*Plan, error) {
	p := &Plan{Source: Containerd, StoreRoot: o.path(containerdRoot)}
	c, err := readContainerd(p, o, cmp.Or(o.ConfigFile, o.path(containerdFile)))
	if err != nil {
		return nil, err
	}
	if root, _ := c["root"].(string); root != "" {
		p.StoreRoot = o.path(root)
	}
	r := newRegistries(p, o)
	runtimes := map[string]*handler{}
	rules := containerdRules(r, runtimes)
	for _, s := range criSettings(c) {
		p.apply(rules, s)
	}
	p.takeHandlers(o, runtimes, cribox(Containerd))
	p.containerdHost(o, c)
	if err := r.finish("/etc/containerd/certs.d", "/etc/docker/certs.d"); err != nil {
		return nil, err
	}
	return p, p.finish(o)
}

// readContainerd reads the file and those that it imports, as containerd merges them: a later file
// wins, tables are merged, and lists joined.
func readContainerd(p *Plan, o Options, file string) (map[string]any, error) {
	merged, pending, seen := map[string]any{}, []string{file}, map[string]bool{}
	for len(pending) > 0 {
		path := pending[0]
		pending = pending[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		one, err := readTOML(path)
		if errors.Is(err, fs.ErrNotExist) && path == file && o.ConfigFile == "" {
			p.add(Same, path, "", "there is no such file: containerd has its defaults")
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("containerd's configuration: %w", err)
		}
		p.Read = append(p.Read, path)
		imports, err := resolve(o, path, stringsOf(one["imports"]))
		if err != nil {
			return nil, fmt.Errorf("%s: imports: %w", path, err)
		}
		merge(merged, one, true)
		pending = append(pending, imports...)
	}
	delete(merged, "imports")
	return merged, nil
}

// resolve returns the files that a file imports.
func resolve(o Options, file string, imports []string) (all []string, err error) {
	for _, path := range imports {
		if filepath.IsAbs(path) {
			path = o.path(path)
		} else {
			path = filepath.Join(filepath.Dir(file), path)
		}
		matches, err := filepath.Glob(path)
		if err != nil {
			return nil, err
		}
		if matches == nil && !strings.ContainsAny(path, "*?[") {
			matches = []string{path} // containerd does not start without it
		}
		all = append(all, matches...)
	}
	return all, nil
}

// criSettings returns the settings of containerd with the names that all versions share: those of
// the CRI's parts without the name of the part, and "containerd.snapshotter" as "snapshotter".
func criSettings(c map[string]any) (all []setting) {
	plugins, _ := c["plugins"].(map[string]any)
	for _, name := range []string{pluginCRI, pluginImages, pluginRuntime, pluginTransfer, "cri"} {
		table, _ := plugins[name].(map[string]any)
		for _, s := range settingsOf(table) {
			if name == pluginTransfer && !slices.Contains([]string{"max_concurrent_downloads", "config_path"}, s.path[0]) {
				continue
			}
			if name == pluginTransfer && s.path[0] == "config_path" {
				s.path = []string{"registry", "config_path"}
			}
			images := []string{"snapshotter", "discard_unpacked_layers", "disable_snapshot_annotations"}
			if s.path[0] == "containerd" && len(s.path) == 2 && slices.Contains(images, s.path[1]) {
				s.path = s.path[1:]
			}
			if !slices.ContainsFunc(all, func(o setting) bool { return o.String() == s.String() }) {
				all = append(all, s)
			}
		}
	}
	return all
}

func containerdRules(r *registries, runtimes map[string]*handler) []rule {
	return slices.Concat(imageRules(r), handlerRules(runtimes), networkRules, containerRules, serverRules)
}

func imageRules(r *registries) []rule {
	sandbox := func(p *Plan, s setting, _ string) {
		if p.Sandbox = s.text(); p.Sandbox != "" {
			p.add(Same, s.String(), "", "the pause program is part of cribox: there is nothing to pull")
		}
	}
	return []rule{
		{"sandbox_image", sandbox},
		{"pinned_images.sandbox", sandbox},
		{"pinned_images.*", func(p *Plan, s setting, _ string) { p.append(s.String(), "images.pinned", s.text()) }},
		{"max_concurrent_downloads", func(p *Plan, s setting, _ string) {
			switch n := s.number(); {
			case n == 3:
				same("the default of cribox is the same")(p, s, "")
			case n > 64:
				p.take(s.String(), "images.downloads", int64(64))
			case n > 0:
				p.take(s.String(), "images.downloads", n)
			}
		}},
		{"image_pull_progress_timeout", takesDuration("images.stall_time")},
		{"snapshotter", sameIf("overlayfs", "layers are on overlayfs",
			"cribox keeps layers on overlayfs; what a lazy snapshotter has not downloaded is pulled")},
		{"discard_unpacked_layers", func(p *Plan, s setting, _ string) {
			p.Discarded = s.yes()
			missing("containerd keeps no layers of unpacked images, so these are pulled again")(p, s, "")
		}},
		{"disable_snapshot_annotations", same("for lazy snapshotters")},
		{"image_decryption.key_model", sameIf("node", "for encrypted layers only, which cannot be pulled",
			"encrypted layers cannot be pulled")},
		{"image_pull_with_sync_fs", same("an image is listed when it is on the disk")},
		{"use_local_image_pull", same("concerns the inside of containerd")},
		{"concurrent_layer_fetch_buffer", missing("a layer is one download")},
		{"stats_collect_period", same("usage is counted when it is asked for")},
		{"stats_retention_period", same("usage is counted when it is asked for")},
		{"registry.config_path", r.configPath},
		{"registry.headers.*", missing("[host.\"...\".header] in the hosts.toml of each registry")},
		{"registry.mirrors.*.endpoint", r.mirror},
		{"registry.configs.*.tls.insecure_skip_verify", r.tls},
		{"registry.configs.*.tls.ca_file", r.tls},
		{"registry.configs.*.tls.cert_file", r.tls},
		{"registry.configs.*.tls.key_file", r.tls},
		{"registry.configs.*.auth.username", r.auth},
		{"registry.configs.*.auth.password", r.auth},
		{"registry.configs.*.auth.auth", r.auth},
		{"registry.configs.*.auth.identitytoken", r.auth},
		{"registry.auths.*.username", r.auth},
		{"registry.auths.*.password", r.auth},
		{"registry.auths.*.auth", r.auth},
		{"registry.auths.*.identitytoken", r.auth},
	}
}

// takesDuration takes a time that is written as Go does.
func takesDuration(key string) func(*Plan, setting, string) {
	return func(p *Plan, s setting, _ string) {
		switch text := s.text(); text {
		case "":
		case "0", "0s":
			p.add(Missing, s.String(), "", "cribox always ends a pull in which nothing moves; %s is how soon", key)
		case "5m0s", "5m":
			same("the default of cribox is the same")(p, s, "")
		default:
			p.take(s.String(), key, text)
		}
	}
}

var networkRules = []rule{
	{"cni.bin_dir", func(p *Plan, s setting, _ string) { p.takeNew(s, "network.bin_dirs", []string{s.text()}) }},
	{"cni.bin_dirs", func(p *Plan, s setting, _ string) { p.takeNew(s, "network.bin_dirs", s.list()) }},
	{"cni.conf_dir", func(p *Plan, s setting, _ string) { p.takeNew(s, "network.conf_dir", s.text()) }},
	{"cni.max_conf_num", sameIf(1, "one network is used", "cribox uses the first network of the folder only")},
	{"cni.conf_template", missing(`[network] default = true and subnet = "pod-cidr" are a bridge with the node's range`)},
	{"cni.ip_pref", missing("the first address that the plugin returns is the pod's first one")},
	{"cni.setup_serially", same("a pod has one network")},
	{"cni.use_internal_loopback", same("cribox sets up the loopback itself")},
	{"netns_mounts_under_state_dir", same("they are in the state folder")},
}

// takeNew takes a value unless it is empty, or what cribox has anyway.
func (p *Plan) takeNew(s setting, key string, value any) {
	switch fmt.Sprint(value) {
	case "", "[]", "[/opt/cni/bin]", "/etc/cni/net.d", "[/etc/cdi /var/run/cdi]":
		same("the default of cribox")(p, s, "")
	default:
		p.take(s.String(), key, value)
	}
}

var containerRules = []rule{
	{"enable_selinux", takesBool("containers.selinux")},
	{"selinux_category_range", sameIf(1024, "the range is the same", "the range of categories is 1024")},
	{"max_container_log_line_size",
		sameIf(16384, "lines of logs are split there", "lines of logs are split after 16 KiB")},
	{"disable_apparmor", missing("pods get their AppArmor profile wherever the kernel has AppArmor")},
	{"restrict_oom_score_adj", missing("cribox runs as root, and sets what is asked for")},
	{"disable_proc_mount", missing("a masked or unmasked /proc is what the pod asks for (procMount)")},
	{"unset_seccomp_profile", missing("a kubelet with seccompDefault asks for the profile of the runtime")},
	{"tolerate_missing_hugetlb_controller", same("a missing controller is tolerated")},
	{"disable_hugetlb_controller", same("limits of huge pages are set where the kernel has them")},
	{"device_ownership_from_security_context",
		missing("devices belong to root: use supplementalGroups of the device's group")},
	{"ignore_image_defined_volumes", missing("volumes of an image are always made: mount an emptyDir over them")},
	{"enable_unprivileged_ports", takesBool("containers.unprivileged_ports")},
	{"enable_unprivileged_icmp", takesBool("containers.unprivileged_ping")},
	{"enable_cdi", func(p *Plan, s setting, _ string) {
		if !s.yes() {
			p.take(s.String(), "cdi_spec_dirs", []string{})
		}
	}},
	{"cdi_spec_dirs", func(p *Plan, s setting, _ string) {
		if off, ok := p.settings["cdi_spec_dirs"].([]string); !ok || len(off) > 0 {
			p.takeNew(s, "cdi_spec_dirs", s.list())
		}
	}},
	{"drain_exec_sync_io_timeout", same("a child that keeps the output of a command open is not waited for")},
	{"enable_criu", same("for checkpoints only, which are not supported")},
	{"enable_experimental_restore_via_create", missing("checkpoints are not supported")},
	{"ignore_deprecation_warnings", same("concerns containerd alone")},
	{"containerd.ignore_blockio_not_enabled_errors", same("classes of block IO are not supported")},
	{"containerd.ignore_rdt_not_enabled_errors", same("RDT classes are not supported")},
	{"containerd.no_pivot", missing("for a root in an initramfs; the OCI runtime pivots")},
}

var serverRules = []rule{
	{"disable_tcp_service", same("streams are on the loopback, with a ticket for each")},
	{"stream_server_address", same("streams are on the loopback, with a ticket for each")},
	{"stream_server_port", same("streams are on the loopback, with a ticket for each")},
	{"stream_idle_timeout", same("the kubelet's streamingConnectionIdleTimeout ends idle streams")},
	{"enable_tls_streaming", missing("streams do not leave the loopback: the kubelet carries them")},
	{"x509_key_pair_streaming.*", missing("streams do not leave the loopback: the kubelet carries them")},
	{"systemd_cgroup", func(p *Plan, s setting, _ string) {
		if s.yes() {
			p.take(s.String(), "cgroup_driver", "systemd")
		}
	}},
}
