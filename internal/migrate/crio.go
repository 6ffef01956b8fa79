package migrate

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

const crioFile = "/etc/crio/crio.conf"

// FromCRIO makes the plan for a node that CRI-O runs.
func FromCRIO(o Options) (*Plan, error) {
	p := &Plan{Source: CRIO}
	c, err := readCRIO(p, o, cmp.Or(o.ConfigFile, o.path(crioFile)))
	if err != nil {
		return nil, err
	}
	crio, _ := c["crio"].(map[string]any)
	runtimes := map[string]*handler{}
	rules := allCRIORules(o, crio, runtimes)
	r := newRegistries(p, o)
	for _, s := range settingsOf(crio) {
		if s.path[len(s.path)-1] == "insecure_registries" {
			for _, host := range s.list() {
				r.insecure(host)
				p.add(Taken, "insecure_registries: "+host, "registry "+host, "")
			}
			continue
		}
		p.apply(rules, s)
	}
	p.crioDefaults(o, crio)
	p.takeHandlers(o, runtimes, cribox(CRIO))
	if err := r.containers(); err != nil {
		return nil, err
	}
	if err := r.finish(); err != nil {
		return nil, err
	}
	if err := p.crioHost(o, crio); err != nil {
		return nil, err
	}
	return p, p.finish(o)
}

// allCRIORules returns the rules for all that CRI-O's file may set. They collect its runtimes.
func allCRIORules(o Options, crio map[string]any, runtimes map[string]*handler) []rule {
	return slices.Concat(crioRules, crioHandlers(runtimes), crioTracing(crio), crioStreams,
		[]rule{{"image.global_auth_file", o.authFile}, {"image.signature_policy", o.policyFile}})
}

// crioDefaults says where cribox does something else than CRI-O when nobody has said what to do.
func (p *Plan) crioDefaults(o Options, crio map[string]any) {
	runtime, _ := crio["runtime"].(map[string]any)
	if runtime["default_runtime"] == nil {
		p.add(Missing, "runtime.default_runtime is not set", "",
			"CRI-O 1.34 executes crun then, and cribox runc: default_runtime and [runtimes.crun] are keys of cribox")
	}
	if runtime["default_capabilities"] == nil {
		p.add(Missing, "runtime.default_capabilities is not set", "", "containers have those of containerd, which are more: "+
			"AUDIT_WRITE, MKNOD, NET_RAW, SETFCAP and SYS_CHROOT. A pod drops what it does not need")
	}
	if exists(o.path("/sys/fs/selinux/enforce")) && runtime["selinux"] == nil {
		p.take("runtime.selinux is not set, and CRI-O labels nothing", "containers.selinux", false)
	}
}

// readCRIO reads the file and those of its folder, of which a later one wins.
func readCRIO(p *Plan, o Options, file string) (map[string]any, error) {
	merged := map[string]any{}
	dropIns, err := filesIn(file + ".d")
	if err != nil {
		return nil, err
	}
	for _, path := range append([]string{file}, dropIns...) {
		one, err := readTOML(path)
		if errors.Is(err, fs.ErrNotExist) && path == file && o.ConfigFile == "" {
			continue // its package may have files in the folder only
		}
		if err != nil {
			return nil, fmt.Errorf("CRI-O's configuration: %w", err)
		}
		p.Read = append(p.Read, path)
		merge(merged, one, false)
	}
	if len(p.Read) == 0 {
		p.add(Same, file, "", "there is no such file: CRI-O has its defaults")
	}
	return merged, nil
}

func crioHandlers(all map[string]*handler) []rule {
	of := handlersOf(all)
	lacks := func(note string) func(*handler, setting) {
		return func(h *handler, s setting) { h.lacks = append(h.lacks, s.String()+": "+note) }
	}
	const at = "runtime.runtimes.*."
	return []rule{
		{"runtime.default_runtime", takesHandler},
		{at + "runtime_path", of(func(h *handler, s setting) { h.program = s.text() })},
		{at + "runtime_type", of(func(h *handler, s setting) { h.kind = s.text() })},
		{at + "privileged_without_host_devices", of(func(h *handler, s setting) {
			h.set("privileged_without_host_devices", s.yes())
		})},
		{at + "runtime_root", of(func(*handler, setting) {})},
		{at + "monitor_path", of(func(*handler, setting) {})},
		{at + "monitor_cgroup", of(func(*handler, setting) {})},
		{at + "monitor_exec_cgroup", of(func(*handler, setting) {})},
		{at + "monitor_env", of(func(*handler, setting) {})},
		{at + "allowed_annotations", of(lacks("annotations of CRI-O do nothing"))},
		{at + "container_min_memory", of(lacks("the OCI runtime says what is too little"))},
		{at + "default_annotations.*", of(lacks("annotations of CRI-O do nothing"))},
		{at + "platform_runtime_paths.*", of(lacks("a runtime has one program, whatever the platform of the image"))},
		{at + "runtime_config_path", of(lacks("cribox executes no shims, and has no settings for them"))},
		{at + "runtime_pull_image", of(lacks("cribox pulls images itself"))},
		{at + "inherit_default_runtime", of(lacks("name the program of the runtime: [runtimes.NAME] path"))},
		{at + "no_sync_log", of(func(*handler, setting) {})},
	}
}

var crioRules = []rule{
	{"runtime.cgroup_manager", func(p *Plan, s setting, _ string) {
		if s.text() != "" {
			p.takeDriver(s, s.text() == "systemd")
		}
	}},
	{"runtime.conmon_cgroup", same("there is no process for each container")},
	{"runtime.conmon", same("one logger serves all containers")},
	{"runtime.conmon_env", same("one logger serves all containers")},
	{"runtime.pids_limit", func(p *Plan, s setting, _ string) {
		if s.number() > 0 {
			p.take(s.String(), "containers.pids_limit", s.number())
		}
	}},
	{"runtime.log_size_max", func(p *Plan, s setting, _ string) {
		if s.number() > 0 {
			p.take(s.String(), "containers.log_size_max", fmt.Sprint(s.number()))
		}
	}},
	{"runtime.default_ulimits", takes("containers.ulimits")},
	{"runtime.selinux", takesBool("containers.selinux")},
	{"runtime.cdi_spec_dirs", func(p *Plan, s setting, _ string) { p.takeNew(s, "cdi_spec_dirs", s.list()) }},
	{"runtime.log_level", func(p *Plan, s setting, _ string) {
		levels := map[string]string{"trace": "debug", "fatal": "error", "panic": "error"}
		if level := cmp.Or(levels[s.text()], s.text()); level != "info" {
			p.take(s.String(), "log_level", level)
		}
	}},
	{"runtime.absent_mount_sources_to_reject", takes("containers.host_path_never_created")},
	{"runtime.drop_infra_ctr", same("the pause process is 640 bytes of program")},
	{"runtime.no_pivot", missing("for a root in an initramfs; the OCI runtime pivots")},
	{"runtime.seccomp_profile", missing("a pod names a profile of the node: seccompProfile.localhostProfile")},
	{"runtime.seccomp_use_default_when_empty",
		missing("a kubelet with seccompDefault asks for the profile of the runtime")},
	{"runtime.apparmor_profile", missing("a pod names a profile of the node: appArmorProfile")},
	{"runtime.default_capabilities", missing("the default capabilities are those of containerd; a pod adds others")},
	{"runtime.default_sysctls", missing("sysctls are set by a pod; unprivileged_ports and unprivileged_ping are keys")},
	{"runtime.hooks_dir", missing("OCI hooks of the node are not executed")},
	{"runtime.default_mounts_file", missing("mounts come from pods and CDI files")},
	{"runtime.default_env", missing("variables come from pods, images and CDI files")},
	{"runtime.allowed_devices", missing("a device plugin or CDI gives devices")},
	{"runtime.additional_devices", missing("a device plugin or CDI gives devices")},
	{"runtime.device_ownership_from_security_context",
		missing("devices belong to root: use supplementalGroups of the device's group")},
	{"runtime.add_inheritable_capabilities", missing("inheritable capabilities are empty")},
	{"runtime.read_only", missing("readOnlyRootFilesystem of a pod")},
	{"runtime.disable_hostport_mapping", missing("ports of the host are mapped when a pod asks for them")},
	{"runtime.infra_ctr_cpuset", missing("the pause process takes no processor time")},
	{"runtime.shared_cpuset", missing("annotations of CRI-O do nothing")},
	{"runtime.workloads.*.*", missing("annotations of CRI-O do nothing")},
	{"runtime.workloads.*.*.*", missing("annotations of CRI-O do nothing")},
	{"runtime.irqbalance_config_file", same("it is for an annotation of CRI-O, which does nothing")},
	{"runtime.irqbalance_config_restore_file", same("it is for an annotation of CRI-O, which does nothing")},
	{"runtime.minimum_mappable_uid",
		sameIf(-1, "the kubelet says which users a pod has", "the kubelet says which users a pod has")},
	{"runtime.minimum_mappable_gid",
		sameIf(-1, "the kubelet says which groups a pod has", "the kubelet says which groups a pod has")},
	{"runtime.uid_mappings", missing("the kubelet says which users a pod has: hostUsers: false")},
	{"runtime.gid_mappings", missing("the kubelet says which groups a pod has: hostUsers: false")},
	{"runtime.blockio_config_file", missing("classes of block I/O are annotations of CRI-O, which do nothing")},
	{"runtime.blockio_reload", missing("classes of block I/O are annotations of CRI-O, which do nothing")},
	{"runtime.rdt_config_file", missing("classes of RDT are annotations of CRI-O, which do nothing")},
	{"runtime.separate_pull_cgroup", missing("pulls are in the daemon's cgroup: limits of cribox.service hold for them")},
	{"runtime.bind_mount_prefix", missing("cribox runs on the host, where paths of volumes are")},
	{"runtime.log_filter", missing("the log has levels only")},
	{"runtime.enable_pod_events", same("events are always sent")},
	{"runtime.enable_criu_support", missing("checkpoints are not supported")},
	{"runtime.timezone", missing("a pod's variable TZ")},
	{"runtime.log_to_journald", missing("logs of containers are files")},
	{"runtime.namespaces_dir", same("they are in the state folder")},
	{"runtime.pinns_path", same("namespaces are pinned without a program")},
	{"runtime.container_exits_dir", same("exit codes are in the state folder")},
	{"runtime.container_attach_socket_dir", same("they are in the state folder")},
	{"runtime.hostnetwork_disable_selinux", same("the label is what the pod asks for")},
	{"runtime.ctr_stop_timeout", same("the kubelet says how long a stop may take")},
	{"runtime.decryption_keys_path", missing("encrypted layers cannot be pulled")},
	{"image.pause_image", same("the pause program is part of cribox: there is nothing to pull")},
	{"image.pause_command", same("the pause program is part of cribox")},
	{"image.pause_image_auth_file", same("the pause program is part of cribox: there is nothing to pull")},
	{"image.pinned_images", func(p *Plan, s setting, _ string) {
		for _, name := range s.list() {
			p.append("pinned_images: "+name, "images.pinned", name)
		}
	}},
	{"image.default_transport",
		sameIf("docker://", "images are pulled from registries", "images are pulled from registries")},
	{"image.signature_policy_dir", missing("signatures are not verified per namespace")},
	{"image.image_volumes", sameIf("mkdir", "volumes of an image are made", "volumes of an image are made")},
	{"image.big_files_temporary_dir", same("a download is written where it stays")},
	{"image.auto_reload_registries", same("folders of registries are read at each pull")},
	{"image.pull_progress_timeout", takesDuration("images.stall_time")},
	{"image.oci_artifact_mount_support", missing("OCI artifacts cannot be mounted")},
	{"image.short_name_mode", missing("a name without a registry is docker.io's")},
	{"network.network_dir", func(p *Plan, s setting, _ string) { p.takeNew(s, "network.conf_dir", s.text()) }},
	{"network.plugin_dirs", func(p *Plan, s setting, _ string) { p.takeNew(s, "network.bin_dirs", trimmed(s.list())) }},
	{"network.plugin_dir", func(p *Plan, s setting, _ string) {
		p.takeNew(s, "network.bin_dirs", trimmed([]string{s.text()}))
	}},
	{"network.cni_default_network", missing("the first network of the folder is used: rename its file")},
}

func trimmed(folders []string) (all []string) {
	for _, f := range folders {
		if f != "" {
			all = append(all, filepath.Clean(f))
		}
	}
	return all
}

// crioTracing returns what becomes of the traces. An endpoint alone makes cribox send them; CRI-O's
// own file names one also where they are off.
func crioTracing(crio map[string]any) []rule {
	tracing, _ := crio["tracing"].(map[string]any)
	if on, _ := tracing["enable_tracing"].(bool); !on {
		return []rule{{"tracing.*", same("CRI-O sends no traces, and neither does cribox")}}
	}
	return []rule{
		{"tracing.enable_tracing", func(p *Plan, s setting, _ string) {
			if tracing["tracing_endpoint"] == nil {
				p.take(s.String()+", to CRI-O's default endpoint", "tracing.endpoint", "127.0.0.1:4317")
				return
			}
			same("traces are sent when there is an endpoint")(p, s, "")
		}},
		{"tracing.tracing_endpoint", takes("tracing.endpoint")},
		{"tracing.tracing_sampling_rate_per_million", func(p *Plan, s setting, _ string) {
			if n := s.number(); n > 0 {
				p.take(s.String(), "tracing.sampling_ratio", float64(n)/1e6)
			}
		}},
	}
}

var crioStreams = []rule{
	{"metrics.enable_metrics", missing("[metrics] listen; the series have other names, see docs/monitoring.md")},
	{"metrics.*", same("concerns the metrics of CRI-O")},
	{"stats.*", same("usage is counted when it is asked for")},
	{"nri.enable_nri", missing("NRI plugins are not executed")},
	{"nri.*", same("there is no NRI")},
	{"api.*", same("cribox has sockets of its own")},
	{"root", same("cribox has a folder of its own")},
	{"runroot", same("cribox has a folder of its own")},
	{"imagestore", same("cribox has a folder of its own")},
	{"storage_driver", sameIf("overlay", "layers are on overlayfs", "layers are on overlayfs")},
	{"storage_option", missing("layers are on overlayfs, in the folder root")},
	{"log_dir", same("the kubelet says where logs are")},
	{"version_file", same("concerns CRI-O alone")},
	{"version_file_persist", same("concerns CRI-O alone")},
	{"clean_shutdown_file", same("the daemon may be killed at any time")},
	{"internal_wipe", same("what does not belong to this boot is removed")},
	{"internal_repair", same("`cribox image verify --repair`")},
}

// crioHost says what becomes of CRI-O's images, and of what the host has for it beside its file.
func (p *Plan) crioHost(o Options, crio map[string]any) error {
	if err := p.policy(o); err != nil {
		return err
	}
	p.unit(o, "crio")
	lists, err := p.imageLists(o, crio)
	if err != nil {
		return err
	}
	for _, file := range lists {
		if err := p.pullsOf(file); err != nil {
			return fmt.Errorf("images of CRI-O: %s: %w", file, err)
		}
	}
	slices.Sort(p.Pulls)
	p.Pulls = slices.Compact(p.Pulls)
	return nil
}

// storageConf is where the settings of containers-storage are, of which the first file counts.
var storageConf = []string{"/etc/containers/storage.conf", "/usr/share/containers/storage.conf"}

// imageLists returns the files in which containers-storage may list images. What CRI-O's own file
// leaves unset, it takes from storage.conf.
func (p *Plan) imageLists(o Options, crio map[string]any) ([]string, error) {
	var storage map[string]any
	for _, path := range storageConf {
		c, err := readTOML(o.path(path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("folder of CRI-O's images: %w", err)
		}
		p.Read = append(p.Read, o.path(path))
		storage, _ = c["storage"].(map[string]any)
		break
	}
	first := func(key, inStorage, otherwise string) string {
		own, _ := crio[key].(string)
		shared, _ := storage[inStorage].(string)
		return cmp.Or(own, shared, otherwise)
	}
	file := filepath.Join(first("storage_driver", "driver", "overlay")+"-images", "images.json")
	lists := []string{o.path(filepath.Join(first("root", "graphroot", "/var/lib/containers/storage"), file))}
	if apart := first("imagestore", "imagestore", ""); apart != "" {
		lists = append(lists, o.path(filepath.Join(apart, file)))
	}
	return lists, nil
}

// pullsOf adds each name of the listed images. CRI-O lists the tags and digests by which an image was
// asked for, all with the one image that they mean. A pod that names one of them needs just that name.
func (p *Plan) pullsOf(file string) error {
	b, err := readFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var all []struct{ Names []string }
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return err
	}
	p.Read = append(p.Read, file)
	for _, image := range all {
		p.Pulls = append(p.Pulls, image.Names...)
	}
	return nil
}
