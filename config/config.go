// Package config holds every key of the configuration: its default, its documentation, its check.
//
// The documentation of a key is its comment tag, which `cribox config` prints. The package reads
// only the configuration files, and changes nothing on the host.
package config

import (
	"time"
)

// DefaultFile is read if no flag names another file. It may be missing.
const DefaultFile = "/etc/cribox/config.toml"

// Config is the whole configuration.
type Config struct {
	Listen         string             `toml:"listen" comment:"Socket that kubelet and crictl connect to: unix:///PATH."`
	Root           string             `toml:"root" comment:"Folder that survives a reboot: images, writable layers, records of pods. Its filesystem must be able to hold an overlay's upper layer."`
	State          string             `toml:"state" comment:"Folder of what runs: sockets, pipes, mounts. Best on a tmpfs. Two daemons on one host need two roots and two states."`
	LogLevel       string             `toml:"log_level" comment:"What the daemon says on stderr: error, warn, info or debug."`
	DefaultRuntime string             `toml:"default_runtime" comment:"Entry of [runtimes] for pods that name no runtime handler."`
	CgroupDriver   string             `toml:"cgroup_driver" comment:"Who makes cgroups: systemd, cgroupfs (cribox itself), or auto, which is systemd where that is the first process. The kubelet is told, and must use the same."`
	PauseImage     string             `toml:"pause_image" comment:"Image of the pause container, which must have been pulled. Empty: the program that is part of cribox, with nothing to pull or lose."`
	Pause          string             `toml:"pause" comment:"Who starts the pause process of a pod: runtime, which is the pod's OCI runtime; or native, which is cribox itself where it can do exactly what runc would do, in a tenth of the processor time."`
	Exec           string             `toml:"exec" comment:"Who executes commands in containers (probes, hooks, kubectl exec): runtime, which is the pod's OCI runtime; or native, which is cribox itself where it can do exactly what runc would do, in a tenth of the processor time."`
	CDISpecDirs    []string           `toml:"cdi_spec_dirs" comment:"Folders of the files that describe CDI devices, read whenever a container asks for one; a later folder wins. Empty: there are no such devices."`
	Images         Images             `toml:"images"`
	Network        Network            `toml:"network"`
	Containers     Containers         `toml:"containers"`
	Metrics        Metrics            `toml:"metrics"`
	Tracing        Tracing            `toml:"tracing"`
	Runtimes       map[string]Runtime `toml:"runtimes" comment:"OCI runtimes by the name of the runtime handler that a RuntimeClass asks for."`

	files []string // the files it was read from, in this order
	flags Flags
}

// Images is the table [images].
type Images struct {
	RegistryConfig  string   `toml:"registry_config" comment:"Folder of registries' hosts.toml files (mirrors, certificates), laid out as containerd's certs.d. Several folders with a colon between; the first that has the registry is used."`
	Credentials     string   `toml:"credentials" comment:"File of the node's credentials for registries and mirrors, in the format of docker's config.json, for pulls that bring none. It may be missing, and is read when a registry asks. Empty: none."`
	HelpersDir      string   `toml:"credential_helpers_dir" comment:"Folder of the credential helpers (docker-credential-NAME) that the file of credentials names. Empty: the daemon's PATH."`
	SignaturePolicy string   `toml:"signature_policy" comment:"File that says which images are pulled only with a signature of cosign, by registry or repository. It is read at each pull; what is here already, or comes from an archive, is not checked. Empty: all are pulled."`
	Pinned          []string `toml:"pinned" comment:"Images that a kubelet's garbage collection leaves: names as in a pod, or fully qualified ones in which * stands for any characters."`
	ImportDir       string   `toml:"import_dir" comment:"Folder whose archives of images are loaded at start and when they appear, as docker save writes them or in the OCI layout; relative to root. Empty: none."`
	Downloads       int64    `toml:"downloads" comment:"Layers that one pull downloads at once."`
	Unpacks         int64    `toml:"unpacks" comment:"Layers that all pulls together unpack at once. 0: as many as there are processors, at least 2."`
	StallTime       Duration `toml:"stall_time" comment:"A pull that moves nearly nothing for so long ends, and a registry has so long to begin an answer: 30s, 2m."`
	LayerSizeMax    Size     `toml:"layer_size_max" comment:"Most bytes that one layer unpacks to; a larger one is refused."`
	ImageSizeMax    Size     `toml:"image_size_max" comment:"Most bytes that the layers of an image have together, packed and unpacked; a larger one is refused."`
	DiskReserve     int64    `toml:"disk_reserve" comment:"Percent of the disk that stay free while a layer is unpacked to more than 200 times its packed size, and more than 256Mi; zeros take no space. 0: any layer may fill the disk."`
	LayerFilesMax   int64    `toml:"layer_files_max" comment:"Most files and folders of one layer; a layer with more is refused."`
}

// Network is the table [network].
type Network struct {
	ConfDir      string   `toml:"conf_dir" comment:"Folder of CNI network configurations. The first one by name is used, and changes are seen at once."`
	BinDirs      []string `toml:"bin_dirs" comment:"Folders of CNI plugins, searched in this order."`
	Default      bool     `toml:"default" comment:"Use a bridge network of cribox's own while conf_dir holds no configuration. Leave it off where a network add-on will write one."`
	Subnet       string   `toml:"subnet" comment:"Range of the default network, where the kubelet names none (pod CIDR). Empty: 10.83.0.0/16. pod-cidr: there is no network until the kubelet has named one."`
	NoMasquerade []string `toml:"no_masquerade" comment:"Ranges that pods of the default network reach with their own address instead of the node's: the pods of other nodes, where routes lead to them."`
}

// Containers is the table [containers].
type Containers struct {
	Ulimits           []string `toml:"ulimits" comment:"Limits of every process: NAME=SOFT:HARD or NAME=BOTH, numbers or unlimited, the names of prlimit(1). nofile is 1024:524288 unless named here."`
	PidsLimit         int64    `toml:"pids_limit" comment:"Most processes and threads of a container. 0: no limit of its own; the kubelet limits the pod (podPidsLimit)."`
	LogSizeMax        Size     `toml:"log_size_max" comment:"What the log of a container takes until the kubelet rotates it; what is printed beyond is left out, and counted in a line. 0: any size; else more than the kubelet's containerLogMaxSize."`
	HostPathMissing   string   `toml:"host_path_missing" comment:"What happens to a mount whose host_path does not exist: create makes a folder there, root's and with mode 0755, as other runtimes do; refuse makes the container fail."`
	HostPathNever     []string `toml:"host_path_never_created" comment:"Host paths at and below which no folder is ever made, such as a disk that may not be mounted yet: a container that mounts one that does not exist fails."`
	UnprivilegedPorts bool     `toml:"unprivileged_ports" comment:"Let every user of a pod with a network of its own listen on ports below 1024, as other runtimes do, unless the pod sets the sysctl itself."`
	UnprivilegedPing  bool     `toml:"unprivileged_ping" comment:"Let every group of such a pod ping without CAP_NET_RAW; not in a pod with a user namespace."`
	SELinux           bool     `toml:"selinux" comment:"Label pods and what they may touch, on a host with SELinux. Off: nothing is labelled, and requests for a label are refused."`
	ShmSize           Size     `toml:"shm_size" comment:"What the /dev/shm of a pod holds: bytes, Ki, Mi or Gi. It counts as memory of the containers that write there."`
}

// Metrics is the table [metrics].
type Metrics struct {
	Listen string `toml:"listen" comment:"Where Prometheus finds what the daemon counts: unix:///PATH, or an address of the loopback such as 127.0.0.1:9421. Empty: nowhere."`
}

// Tracing is the table [tracing].
type Tracing struct {
	Endpoint      string  `toml:"endpoint" comment:"Collector of traces (OTLP over gRPC): HOST:PORT or http://HOST:PORT, https:// with TLS. Empty: there are no traces."`
	SamplingRatio float64 `toml:"sampling_ratio" comment:"Share of the requests whose client does not say whether they are traced: 0 to 1. A kubelet with tracing says it."`
}

// Runtime is one table [runtimes.NAME].
type Runtime struct {
	Path                         string   `toml:"path" comment:"An OCI command line runtime: an absolute path, or a name that is looked up in PATH when the file is read."`
	Ulimits                      []string `toml:"ulimits" comment:"Limits of every process of this handler, over those of [containers] name by name."`
	ShmSize                      Size     `toml:"shm_size" comment:"What the /dev/shm of a pod of this handler holds. 0: as in [containers]."`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices" comment:"Give a privileged container the devices that it asks for, and not all of the host's."`
}

// Values of host_path_missing and cgroup_driver; of pause and exec.
const (
	PathCreate, PathRefuse                    = "create", "refuse"
	DriverAuto, DriverSystemd, DriverCgroupfs = "auto", "systemd", "cgroupfs"
	ByRuntime, Native                         = "runtime", "native"
)

// Default returns the configuration with every key at its default.
func Default() Config {
	return Config{
		Listen: "unix:///run/cribox/cribox.sock", Root: "/var/lib/cribox", State: "/run/cribox",
		LogLevel: "info", DefaultRuntime: "runc", CgroupDriver: DriverAuto, Pause: Native, Exec: Native,
		CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
		Images: Images{
			RegistryConfig: "/etc/cribox/certs.d", Credentials: "/etc/cribox/credentials.json",
			Pinned: []string{}, ImportDir: "import", Downloads: 3,
			StallTime:    Duration(5 * time.Minute),
			LayerSizeMax: 64 << 30, ImageSizeMax: 256 << 30, DiskReserve: 15, LayerFilesMax: 5_000_000,
		},
		Network: Network{ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			NoMasquerade: []string{}},
		Containers: Containers{
			Ulimits: []string{}, HostPathMissing: PathCreate, HostPathNever: []string{},
			UnprivilegedPorts: true, UnprivilegedPing: true, SELinux: true, ShmSize: 64 << 20,
		},
		Runtimes: map[string]Runtime{"runc": {Path: "runc", Ulimits: []string{}}},
	}
}
