package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/pelletier/go-toml/v2"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/runtimeshim"
)

const defaultConfigFile = "/etc/cribox/config.toml"

// Config is the whole configuration. A key's documentation is its comment tag, which `cribox config` prints.
type Config struct {
	Listen         string             `toml:"listen" comment:"Socket that kubelet and crictl connect to: unix:///PATH."`
	Root           string             `toml:"root" comment:"Folder that survives a reboot: images, writable layers, records of pods. Its filesystem must be able to hold an overlay's upper layer."`
	State          string             `toml:"state" comment:"Folder of what runs: sockets, pipes, mounts. Best on a tmpfs. Two daemons on one host need two roots and two states."`
	LogLevel       string             `toml:"log_level" comment:"What the daemon says on stderr: error, warn, info or debug."`
	DefaultRuntime string             `toml:"default_runtime" comment:"Entry of [runtimes] for pods that name no runtime handler."`
	CgroupDriver   string             `toml:"cgroup_driver" comment:"Who makes cgroups: systemd, cgroupfs (cribox itself), or auto, which is systemd where that is the first process. The kubelet is told, and must use the same."`
	PauseImage     string             `toml:"pause_image" comment:"Image of the pause container, which must have been pulled. Empty: the program that is part of cribox, with nothing to pull or lose."`
	CDISpecDirs    []string           `toml:"cdi_spec_dirs" comment:"Folders of the files that describe CDI devices, read whenever a container asks for one; a later folder wins. Empty: there are no such devices."`
	Images         ImagesConfig       `toml:"images"`
	Network        NetworkConfig      `toml:"network"`
	Containers     ContainersConfig   `toml:"containers"`
	Runtimes       map[string]Runtime `toml:"runtimes" comment:"OCI runtimes by the name of the runtime handler that a RuntimeClass asks for."`

	files  []string               // where it was read from, in this order
	reread func() (Config, error) // reads it again, as the daemon was started
}

// ImagesConfig is the table [images].
type ImagesConfig struct {
	RegistryConfig string   `toml:"registry_config" comment:"Folder of registries' hosts.toml files (mirrors, certificates), laid out as containerd's certs.d."`
	Pinned         []string `toml:"pinned" comment:"Images that a kubelet's garbage collection leaves: names as in a pod, or fully qualified ones in which * stands for any characters."`
	Downloads      int64    `toml:"downloads" comment:"Layers that one pull downloads at once."`
	Unpacks        int64    `toml:"unpacks" comment:"Layers that all pulls together unpack at once. 0: as many as there are processors, at least 2."`
	StallTime      duration `toml:"stall_time" comment:"A pull that moves nearly nothing for so long ends, and a registry has so long to begin an answer: 30s, 2m."`
	LayerSizeMax   size     `toml:"layer_size_max" comment:"Most bytes that one layer unpacks to; a larger one is refused."`
	ImageSizeMax   size     `toml:"image_size_max" comment:"Most bytes that the layers of an image have together, packed and unpacked; a larger one is refused."`
	DiskReserve    int64    `toml:"disk_reserve" comment:"Percent of the disk that stay free while a layer is unpacked to more than 200 times its packed size, and more than 256Mi; zeros take no space. 0: any layer may fill the disk."`
	LayerFilesMax  int64    `toml:"layer_files_max" comment:"Most files and folders of one layer; a layer with more is refused."`
}

// NetworkConfig is the table [network].
type NetworkConfig struct {
	ConfDir      string   `toml:"conf_dir" comment:"Folder of CNI network configurations. The first one by name is used, and changes are seen at once."`
	BinDirs      []string `toml:"bin_dirs" comment:"Folders of CNI plugins, searched in this order."`
	Default      bool     `toml:"default" comment:"Use a bridge network of cribox's own while conf_dir holds no configuration. Leave it off where a network add-on will write one."`
	Subnet       string   `toml:"subnet" comment:"Range of the default network, where the kubelet names none (pod CIDR). Empty: 10.83.0.0/16. pod-cidr: there is no network until the kubelet has named one."`
	NoMasquerade []string `toml:"no_masquerade" comment:"Ranges that pods of the default network reach with their own address instead of the node's: the pods of other nodes, where routes lead to them."`
}

// ContainersConfig is the table [containers].
type ContainersConfig struct {
	Ulimits           []string `toml:"ulimits" comment:"Limits of every process: NAME=SOFT:HARD or NAME=BOTH, numbers or unlimited, the names of prlimit(1). nofile is 1024:524288 unless named here."`
	PidsLimit         int64    `toml:"pids_limit" comment:"Most processes and threads of a container. 0: no limit of its own; the kubelet limits the pod (podPidsLimit)."`
	LogSizeMax        size     `toml:"log_size_max" comment:"What the log of a container takes until the kubelet rotates it; what is printed beyond is left out, and counted in a line. 0: any size; else more than the kubelet's containerLogMaxSize."`
	HostPathMissing   string   `toml:"host_path_missing" comment:"What happens to a mount whose host_path does not exist: create makes a folder there, root's and with mode 0755, as other runtimes do; refuse makes the container fail."`
	HostPathNever     []string `toml:"host_path_never_created" comment:"Host paths at and below which no folder is ever made, such as a disk that may not be mounted yet: a container that mounts one that does not exist fails."`
	UnprivilegedPorts bool     `toml:"unprivileged_ports" comment:"Let every user of a pod with a network of its own listen on ports below 1024, as other runtimes do, unless the pod sets the sysctl itself."`
	UnprivilegedPing  bool     `toml:"unprivileged_ping" comment:"Let every group of such a pod ping without CAP_NET_RAW; not in a pod with a user namespace."`
	SELinux           bool     `toml:"selinux" comment:"Label pods and what they may touch, on a host with SELinux. Off: nothing is labelled, and requests for a label are refused."`
	ShmSize           size     `toml:"shm_size" comment:"What the /dev/shm of a pod holds: bytes, Ki, Mi or Gi. It counts as memory of the containers that write there."`
}

// Runtime is a table [runtimes.NAME].
type Runtime struct {
	Path                         string   `toml:"path" comment:"An OCI command line runtime: an absolute path, or a name that is looked up in PATH when the file is read."`
	Ulimits                      []string `toml:"ulimits" comment:"Limits of every process of this handler, over those of [containers] name by name."`
	ShmSize                      size     `toml:"shm_size" comment:"What the /dev/shm of a pod of this handler holds. 0: as in [containers]."`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices" comment:"Give a privileged container the devices that it asks for, and not all of the host's."`
}

func defaultConfig() Config {
	return Config{
		Listen: "unix:///run/cribox/cribox.sock", Root: "/var/lib/cribox", State: "/run/cribox", LogLevel: "info", DefaultRuntime: "runc", CgroupDriver: driverAuto,
		CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
		Images: ImagesConfig{RegistryConfig: "/etc/cribox/certs.d", Pinned: []string{}, Downloads: 3, StallTime: duration(5 * time.Minute),
			LayerSizeMax: 64 << 30, ImageSizeMax: 256 << 30, DiskReserve: 15, LayerFilesMax: 5_000_000},
		Network:    NetworkConfig{ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}, NoMasquerade: []string{}},
		Containers: ContainersConfig{Ulimits: []string{}, HostPathMissing: pathCreate, HostPathNever: []string{}, UnprivilegedPorts: true, UnprivilegedPing: true, SELinux: true, ShmSize: 64 << 20},
		Runtimes:   map[string]Runtime{"runc": {Path: "runc", Ulimits: []string{}}},
	}
}

// loadConfig reads over the defaults the file and then, in the order of their names, the files FILE.d/*.toml: key by key, the last one wins.
// Only the default file and the folder may be missing. An error names the file, the line and the key.
func loadConfig(path string) (Config, error) {
	c := defaultConfig()
	if err := c.read(path); err != nil && (path != defaultConfigFile || !errors.Is(err, os.ErrNotExist)) {
		return c, err
	}
	entries, err := os.ReadDir(path + ".d")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return c, fmt.Errorf("configuration: %w", err)
	}
	for _, e := range entries { // sorted
		if strings.HasPrefix(e.Name(), ".") || filepath.Ext(e.Name()) != ".toml" {
			continue
		}
		if err := c.read(filepath.Join(path+".d", e.Name())); err != nil {
			return c, err
		}
	}
	return c, nil
}

// read puts one file over what there is.
func (c *Config) read(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	c.files = append(c.files, path)
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return explain(path, err)
	}
	return nil
}

// explain turns a decoder's error into one sentence with the line and the key.
func explain(path string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var all []error
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			all = append(all, fmt.Errorf("configuration %s, line %d: unknown key %q", path, row, strings.Join(e.Key(), ".")))
		}
		return errors.Join(all...)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, _ := bad.Position()
		key := ""
		if len(bad.Key()) > 0 {
			key = fmt.Sprintf("key %q: ", strings.Join(bad.Key(), "."))
		}
		return fmt.Errorf("configuration %s, line %d: %s%s", path, row, key, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return fmt.Errorf("configuration %s: %w", path, err)
}

// check is one thing that must hold of a configuration.
type check struct {
	key  string
	test func(*Config) error
}

var handlerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

var checks = []check{
	{"listen", func(c *Config) error {
		path, ok := strings.CutPrefix(c.Listen, "unix://")
		if !ok || !filepath.IsAbs(path) {
			return fmt.Errorf("%q is no unix:///PATH", c.Listen)
		}
		if len(path) > 107 {
			return fmt.Errorf("%q is longer than the 107 bytes of a socket's path", path)
		}
		return nil
	}},
	{"root", func(c *Config) error { return absolute(c.Root) }},
	{"state", func(c *Config) error {
		if filepath.Clean(c.State) == filepath.Clean(c.Root) {
			return errors.New("is the same folder as root")
		}
		if len(c.State) > 90 {
			return fmt.Errorf("%q is longer than 90 bytes, and the sockets below it have to fit into 107", c.State)
		}
		return absolute(c.State)
	}},
	{"log_level", func(c *Config) error {
		if levels := []string{"error", "warn", "info", "debug"}; !slices.Contains(levels, c.LogLevel) {
			return fmt.Errorf("%q is none of %s", c.LogLevel, strings.Join(levels, ", "))
		}
		return nil
	}},
	{"default_runtime", func(c *Config) error {
		if _, ok := c.Runtimes[c.DefaultRuntime]; !ok {
			return fmt.Errorf("there is no [runtimes.%s]", c.DefaultRuntime)
		}
		return nil
	}},
	{"cgroup_driver", func(c *Config) error {
		if drivers := []string{driverAuto, driverSystemd, driverCgroupfs}; !slices.Contains(drivers, c.CgroupDriver) {
			return fmt.Errorf("%q is none of %s", c.CgroupDriver, strings.Join(drivers, ", "))
		}
		return nil
	}},
	{"pause_image", func(c *Config) error {
		if c.PauseImage == "" {
			return nil
		}
		_, err := reference.ParseDockerRef(c.PauseImage)
		return err
	}},
	{"cdi_spec_dirs", func(c *Config) error { return allAbsolute(c.CDISpecDirs) }},
	{"images.registry_config", func(c *Config) error {
		if c.Images.RegistryConfig == "" {
			return nil
		}
		return absolute(c.Images.RegistryConfig)
	}},
	{"images.pinned", func(c *Config) error {
		for _, name := range c.Images.Pinned {
			if _, err := reference.ParseDockerRef(strings.ReplaceAll(name, "*", "x")); err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
		}
		return nil
	}},
	{"images.downloads", func(c *Config) error { return between(c.Images.Downloads, 1, 64) }},
	{"images.unpacks", func(c *Config) error { return between(c.Images.Unpacks, 0, 1024) }},
	{"images.stall_time", func(c *Config) error {
		if c.Images.StallTime < duration(time.Second) {
			return fmt.Errorf("%s is less than a second", time.Duration(c.Images.StallTime))
		}
		return nil
	}},
	{"images.layer_size_max", func(c *Config) error { return atLeast(c.Images.LayerSizeMax, leastImage) }},
	{"images.image_size_max", func(c *Config) error { return atLeast(c.Images.ImageSizeMax, leastImage) }},
	{"images.disk_reserve", func(c *Config) error { return between(c.Images.DiskReserve, 0, 99) }},
	{"images.layer_files_max", func(c *Config) error { return between(c.Images.LayerFilesMax, 1000, math.MaxInt32) }},
	{"network.conf_dir", func(c *Config) error { return absolute(c.Network.ConfDir) }},
	{"network.bin_dirs", func(c *Config) error { return allAbsolute(c.Network.BinDirs) }},
	{"network.subnet", func(c *Config) error {
		if c.Network.Subnet == "" || c.Network.Subnet == cni.PodCIDR {
			return nil
		}
		for s := range strings.SplitSeq(c.Network.Subnet, ",") {
			if _, err := netip.ParsePrefix(strings.TrimSpace(s)); err != nil {
				return err
			}
		}
		return nil
	}},
	{"containers.ulimits", func(c *Config) error { _, err := parseUlimits(c.Containers.Ulimits); return err }},
	{"containers.pids_limit", func(c *Config) error {
		if c.Containers.PidsLimit < 0 {
			return fmt.Errorf("%d is negative", c.Containers.PidsLimit)
		}
		return nil
	}},
	{"containers.host_path_missing", func(c *Config) error {
		if c.Containers.HostPathMissing != pathCreate && c.Containers.HostPathMissing != pathRefuse {
			return fmt.Errorf("%q is neither %s nor %s", c.Containers.HostPathMissing, pathCreate, pathRefuse)
		}
		return nil
	}},
	{"containers.host_path_never_created", func(c *Config) error { return allAbsolute(c.Containers.HostPathNever) }},
	{"containers.shm_size", func(c *Config) error { return atLeast(c.Containers.ShmSize, leastShm) }},
	{"network.no_masquerade", func(c *Config) error {
		_, err := c.Network.noMasquerade()
		return err
	}},
	{"containers.log_size_max", func(c *Config) error {
		if c.Containers.LogSizeMax == 0 {
			return nil
		}
		return atLeast(c.Containers.LogSizeMax, runtimeshim.MinLogLimit)
	}},
	{"runtimes", func(c *Config) error {
		for name, r := range c.Runtimes {
			if !handlerName.MatchString(name) || len(name) > 63 {
				return fmt.Errorf("%q cannot be the name of a runtime handler", name)
			}
			if r.Path == "" {
				return fmt.Errorf("[runtimes.%s] has no path", name)
			}
			if _, err := parseUlimits(r.Ulimits); err != nil {
				return fmt.Errorf("[runtimes.%s] ulimits: %w", name, err)
			}
			if r.ShmSize != 0 && atLeast(r.ShmSize, leastShm) != nil {
				return fmt.Errorf("[runtimes.%s] shm_size: %w", name, atLeast(r.ShmSize, leastShm))
			}
		}
		return nil
	}},
}

// Values of host_path_missing.
const pathCreate, pathRefuse = "create", "refuse"

const leastImage = 1 << 20 // less is a mistake in the unit

func between(n, least, most int64) error {
	if n < least || n > most {
		return fmt.Errorf("%d is not between %d and %d", n, least, most)
	}
	return nil
}

const leastShm = 4 << 10 // a tmpfs of size 0 would have no limit

func atLeast(s size, least size) error {
	if s < least {
		return fmt.Errorf("%d is less than %d bytes", s, least)
	}
	return nil
}

// noMasquerade returns the ranges of no_masquerade.
func (n NetworkConfig) noMasquerade() ([]netip.Prefix, error) {
	all := make([]netip.Prefix, 0, len(n.NoMasquerade))
	for _, s := range n.NoMasquerade {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func absolute(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is no absolute path", path)
	}
	return nil
}

func allAbsolute(paths []string) error {
	for _, path := range paths {
		if err := absolute(path); err != nil {
			return err
		}
	}
	return nil
}

// validate returns what is wrong with the values, one error a key. It names the file and the line that a value comes from; source is named
// for one that stands in no file.
func (c *Config) validate(source string) error {
	var all []error
	for _, k := range checks {
		if err := k.test(c); err != nil {
			all = append(all, fmt.Errorf("configuration %s: key %q: %w", c.place(source, k.key), k.key, err))
		}
	}
	return errors.Join(all...)
}

// place names the file that had the last word on a key, and the line.
func (c *Config) place(source, key string) string {
	for _, file := range slices.Backward(c.files) {
		if line := lineOf(file, key); line != "" {
			return file + line
		}
	}
	return source
}

// lineOf returns ", line N" for a key that stands in the file by itself, and nothing for one that comes from a flag or a default.
func lineOf(file, key string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	table, name := "", key
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		table, name = key[:i], key[i+1:]
	}
	current, n := "", 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			current = strings.Trim(line, "[] ")
			if name == current || strings.HasPrefix(current, name+".") {
				return fmt.Sprintf(", line %d", n)
			}
			continue
		}
		if k, _, ok := strings.Cut(line, "="); ok && current == table && strings.TrimSpace(k) == name {
			return fmt.Sprintf(", line %d", n)
		}
	}
	return ""
}

// Values of cgroup_driver.
const driverAuto, driverSystemd, driverCgroupfs = "auto", "systemd", "cgroupfs"

// systemdCgroup says whether systemd makes the cgroups of pods, on a machine that runs systemd or does not.
func (c *Config) systemdCgroup(systemdRuns bool) (bool, error) {
	switch c.CgroupDriver {
	case driverSystemd:
		if !systemdRuns {
			return false, errors.New("cgroup_driver is systemd, which is not the first process of this machine: set cgroupfs or auto")
		}
		return true, nil
	case driverCgroupfs:
		return false, nil
	}
	return systemdRuns, nil
}

// instance marks everything on the host that belongs to one state folder.
func (c *Config) instance() string {
	sum := sha256.Sum256([]byte(filepath.Clean(c.State)))
	return hex.EncodeToString(sum[:3])
}

// scopes names the scopes of what outlives the daemon, those of the default state folder without the instance. nil where no systemd makes any.
func (c *Config) scopes(systemd bool) func(peer string) string {
	if !systemd {
		return nil
	}
	last := ".scope"
	if filepath.Clean(c.State) != defaultConfig().State {
		last = "-" + c.instance() + last
	}
	return func(peer string) string { return "cribox-" + peer + last }
}

func (c *Config) socket() string { return strings.TrimPrefix(c.Listen, "unix://") }

// print returns the configuration as a file that can be used as it is, each key below its documentation.
func (c Config) print() ([]byte, error) {
	var b bytes.Buffer
	e := toml.NewEncoder(&b)
	e.SetIndentTables(false)
	if err := e.Encode(c); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// values returns the configuration as tables by their keys in the file.
func (c Config) values() any {
	all := map[string]any{}
	b, err := toml.Marshal(c)
	if err == nil {
		err = toml.Unmarshal(b, &all)
	}
	if err != nil {
		return err.Error() // for a person; it was read as such a file
	}
	return all
}
