package config

import (
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

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/runtimeshim"
)

// check tests the value of one key.
type check struct {
	key  string
	test func(*Config) error
}

var handlerName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

var checks = []check{
	{"listen", func(c *Config) error { return socketAddress(c.Listen) }},
	{"root", func(c *Config) error { return absolute(c.Root) }},
	{"state", func(c *Config) error {
		if filepath.Clean(c.State) == filepath.Clean(c.Root) {
			return errors.New("must not be the same folder as root")
		}
		if len(c.State) > 90 {
			return fmt.Errorf("%q is longer than 90 bytes; the paths of the sockets in it must fit into 107", c.State)
		}
		return absolute(c.State)
	}},
	{"log_level", func(c *Config) error {
		if levels := []string{"error", "warn", "info", "debug"}; !slices.Contains(levels, c.LogLevel) {
			return fmt.Errorf("%q is not one of %s", c.LogLevel, strings.Join(levels, ", "))
		}
		return nil
	}},
	{"default_runtime", func(c *Config) error {
		if _, ok := c.Runtimes[c.DefaultRuntime]; !ok {
			return fmt.Errorf("there is no [runtimes.%s]", c.DefaultRuntime)
		}
		return nil
	}},
	{"pause", func(c *Config) error { return checkNative(c.Pause) }},
	{"exec", func(c *Config) error { return checkNative(c.Exec) }},
	{"cgroup_driver", func(c *Config) error {
		if drivers := []string{DriverAuto, DriverSystemd, DriverCgroupfs}; !slices.Contains(drivers, c.CgroupDriver) {
			return fmt.Errorf("%q is not one of %s", c.CgroupDriver, strings.Join(drivers, ", "))
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
		return allAbsolute(filepath.SplitList(c.Images.RegistryConfig))
	}},
	{"images.credentials", func(c *Config) error { return absoluteOrNone(c.Images.Credentials) }},
	{"images.signature_policy", func(c *Config) error { return absoluteOrNone(c.Images.SignaturePolicy) }},
	{"images.credential_helpers_dir", func(c *Config) error { return absoluteOrNone(c.Images.HelpersDir) }},
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
		if c.Images.StallTime < Duration(time.Second) {
			return fmt.Errorf("%s is less than one second", time.Duration(c.Images.StallTime))
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
		if c.Containers.HostPathMissing != PathCreate && c.Containers.HostPathMissing != PathRefuse {
			return fmt.Errorf("%q is neither %s nor %s", c.Containers.HostPathMissing, PathCreate, PathRefuse)
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
	{"metrics.listen", func(c *Config) error { _, _, err := c.MetricsAddress(); return err }},
	{"tracing.endpoint", func(c *Config) error { _, err := c.TraceURL(); return err }},
	{"tracing.sampling_ratio", func(c *Config) error {
		if r := c.Tracing.SamplingRatio; !(r >= 0 && r <= 1) {
			return fmt.Errorf("%v is not between 0 and 1", r)
		}
		return nil
	}},
	{"runtimes", func(c *Config) error {
		for name, r := range c.Runtimes {
			if !handlerName.MatchString(name) || len(name) > 63 {
				return fmt.Errorf("%q is not a valid name of a runtime handler", name)
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

// socketAddress tests an address of the form unix:///PATH.
func socketAddress(address string) error {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not a unix:///PATH address", address)
	}
	if len(path) > 107 {
		return fmt.Errorf("%q is longer than 107 bytes, the limit for socket paths", path)
	}
	return nil
}

const leastImage = 1 << 20 // a smaller value is probably a wrong unit

func between(n, least, most int64) error {
	if n < least || n > most {
		return fmt.Errorf("%d is not between %d and %d", n, least, most)
	}
	return nil
}

const leastShm = 4 << 10 // size=0 would mean a tmpfs without a limit

func atLeast(s, least Size) error {
	if s < least {
		return fmt.Errorf("%d is less than %d bytes", s, least)
	}
	return nil
}

func absolute(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	return nil
}

func absoluteOrNone(path string) error {
	if path == "" {
		return nil
	}
	return absolute(path)
}

func allAbsolute(paths []string) error {
	for _, path := range paths {
		if err := absolute(path); err != nil {
			return err
		}
	}
	return nil
}

// validate returns an error for each key with an invalid value. The error contains the file and the
// line of the value, or source if no file sets the key.
func (c *Config) validate(source string) error {
	var all []error
	for _, k := range checks {
		if err := k.test(c); err != nil {
			all = append(all, fmt.Errorf("configuration %s: key %q: %w", c.place(source, k.key), k.key, err))
		}
	}
	return errors.Join(all...)
}

// place returns the file and the line that set the key's value, or source if no file sets it.
func (c *Config) place(source, key string) string {
	for _, file := range slices.Backward(c.files) {
		if line := lineOf(file, key); line != "" {
			return file + line
		}
	}
	return source
}

// lineOf returns ", line N" if the file sets the key, and "" if it does not.
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

// checkNative checks a key that says who starts processes.
func checkNative(value string) error {
	if value != ByRuntime && value != Native {
		return fmt.Errorf("%q is neither %s nor %s", value, ByRuntime, Native)
	}
	return nil
}
