package spec

import (
	"errors"
	"net/netip"
	"path"
	"regexp"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
	"github.com/cribox/cribox/sandbox/spec/users"
)

// podChecks is everything that is asked of the request for a pod, in the order of the message.
var podChecks = []struct {
	name  string
	check func(*runtimeapi.PodSandboxConfig, Host) error
}{
	{"metadata", checkPodMetadata},
	{"hostname", checkHostname},
	{"log directory", checkLogDirectory},
	{"dns", checkDNS},
	{"ports", checkPorts},
	{"cgroup parent", checkCgroupParent},
	{"sysctls", checkSysctls},
	{"namespaces", checkPodNamespaces},
	{"user", checkPodUser},
	{"profiles", checkPodProfiles},
	{"resources", checkPodResources},
	{"windows", checkPodWindows},
}

// ValidatePod returns ErrInvalidArgument naming the field that no machine
// could serve, or ErrFailedPrecondition naming what this one lacks.
func ValidatePod(p *runtimeapi.PodSandboxConfig, h Host) error {
	if p == nil {
		return check.Invalid("config", "is missing")
	}
	for _, c := range podChecks {
		if err := c.check(p, h); err != nil {
			return err
		}
	}
	return nil
}

func checkPodMetadata(p *runtimeapi.PodSandboxConfig, _ Host) error {
	m := p.GetMetadata()
	if m == nil {
		return check.Invalid("metadata", "is missing")
	}
	if err := check.Name("metadata.name", m.GetName()); err != nil {
		return err
	}
	for _, f := range []struct{ field, value string }{{"metadata.namespace", m.GetNamespace()},
		{"metadata.uid", m.GetUid()}} {
		if f.value == "" {
			continue // a person with crictl writes what is needed
		}
		if err := check.Name(f.field, f.value); err != nil {
			return err
		}
	}
	return nil
}

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)

// maxHostname is what sethostname(2) takes.
const maxHostname = 64

func checkHostname(p *runtimeapi.PodSandboxConfig, _ Host) error {
	name := p.GetHostname()
	if name != "" && (len(name) > maxHostname || !hostname.MatchString(name)) {
		return check.Invalid("hostname", "%q is not a host name of at most %d bytes", check.Truncate(name), maxHostname)
	}
	return nil
}

func checkLogDirectory(p *runtimeapi.PodSandboxConfig, _ Host) error {
	if p.GetLogDirectory() == "" {
		return nil
	}
	return check.HostPath("log_directory", p.GetLogDirectory())
}

// maxResolv is how many bytes of names and addresses a resolv.conf is made of. How many a resolver
// reads is its own affair.
const maxResolv = 256 << 10

func checkDNS(p *runtimeapi.PodSandboxConfig, _ Host) error {
	d := p.GetDnsConfig()
	total := 0
	for _, f := range []struct {
		field string
		list  []string
	}{
		{"dns_config.servers", d.GetServers()},
		{"dns_config.searches", d.GetSearches()},
		{"dns_config.options", d.GetOptions()},
	} {
		for _, s := range f.list {
			if total += len(s) + 1; total > maxResolv {
				return check.Invalid(f.field, "make a resolv.conf of more than %d bytes", maxResolv)
			}
			if strings.ContainsAny(s, "\n\r\x00") {
				return check.Invalid(f.field, "%q has more than one line", check.Truncate(s))
			}
		}
	}
	return nil
}

// DNSWords returns a list of dns_config without what is no word: a kubelet cuts the lines of the
// node's resolv.conf at their blanks, and so sends parts of a comment, and "" for the search domain
// ".".
func DNSWords(list []string) []string {
	var words []string
	for _, s := range list {
		if s = strings.TrimSpace(s); s != "" && s[0] != '#' && s[0] != ';' {
			words = append(words, s)
		}
	}
	return words
}

// podDNS notes what of dns_config no resolver can use.
func (d *draft) podDNS() error {
	dns := d.pod.Config.GetDnsConfig()
	for field, list := range map[string][]string{"servers": dns.GetServers(), "searches": dns.GetSearches(),
		"options": dns.GetOptions()} {
		if n := len(list) - len(DNSWords(list)); n > 0 {
			d.note("dns_config."+field, "has empty entries or parts of a comment, which were left out")
		}
	}
	for _, s := range DNSWords(dns.GetServers()) {
		if _, err := netip.ParseAddr(s); err != nil {
			d.note("dns_config.servers", "%q is not an IP address; it was written to resolv.conf unchanged", check.Truncate(s))
		}
	}
	return nil
}

const maxPort = 65535

// checkPorts: host port 0 means that there is no mapping, whatever else it says. An address is one
// of the host, 0.0.0.0 is every IPv4 address, :: every IPv6 address, and none is every address. A
// port may be asked for at addresses that lie in each other: network plugins give it to the mapping
// that comes first.
func checkPorts(p *runtimeapi.PodSandboxConfig, _ Host) error {
	type place struct {
		ip       string
		port     int32
		protocol runtimeapi.Protocol
	}
	used := map[place]int32{} // container ports
	for _, m := range p.GetPortMappings() {
		host, container := m.GetHostPort(), m.GetContainerPort()
		if _, ok := runtimeapi.Protocol_name[int32(m.GetProtocol())]; !ok {
			return check.Invalid("port_mappings.protocol", "%d is unknown", m.GetProtocol())
		}
		if host < 0 || host > maxPort {
			return check.Invalid("port_mappings.host_port", "%d is not between 0 and %d", host, maxPort)
		}
		if container < 0 || container > maxPort || (container == 0 && host != 0) {
			return check.Invalid("port_mappings.container_port", "%d is not between 1 and %d", container, maxPort)
		}
		ip := m.GetHostIp()
		if ip != "" {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				return check.Invalid("port_mappings.host_ip", "%q is not an address", check.Truncate(ip))
			}
			ip = addr.Unmap().String()
		}
		at := place{ip, host, m.GetProtocol()}
		if other, again := used[at]; host != 0 && again && other != container {
			return check.Invalid("port_mappings.host_port", "%d/%s occurs twice at address %q", host, m.GetProtocol(), ip)
		}
		used[at] = container
	}
	return nil
}

// cgroupPart is what systemd, cgroupfs and a path take alike.
var cgroupPart = regexp.MustCompile(`^[A-Za-z0-9_.:@\\-]+$`)

// sliceName is systemd's: a dash stands between a slice and the one it lies in; -.slice is the
// root.
var sliceName = regexp.MustCompile(`^(-|[^-/:]+(-[^-/:]+)*)\.slice$`)

func checkCgroupParent(p *runtimeapi.PodSandboxConfig, h Host) error {
	const field = "linux.cgroup_parent"
	parent := p.GetLinux().GetCgroupParent()
	if parent == "" {
		return nil
	}
	if err := check.Path(field, parent); err != nil {
		return err
	}
	for _, part := range strings.Split(strings.Trim(path.Clean(parent), "/"), "/") {
		if part != "" && (part == "." || !cgroupPart.MatchString(part)) {
			return check.Invalid(field, "%q is not the name of a cgroup", check.Truncate(parent))
		}
	}
	if h.SystemdCgroup && !sliceName.MatchString(path.Base(parent)) {
		return check.Invalid(field, "%q is not a systemd slice", check.Truncate(parent))
	}
	return nil
}

// checkPodUser: the pause process has a user of its own, but a half-said one is still an error.
func checkPodUser(p *runtimeapi.PodSandboxConfig, _ Host) error {
	sc := p.GetLinux().GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return check.Invalid("linux.security_context.run_as_group", "is set without run_as_user")
	}
	if err := check.ID("linux.security_context.run_as_user", sc.GetRunAsUser().GetValue()); err != nil {
		return err
	}
	if err := check.ID("linux.security_context.run_as_group", sc.GetRunAsGroup().GetValue()); err != nil {
		return err
	}
	return users.CheckGroups(sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
}

func checkPodProfiles(p *runtimeapi.PodSandboxConfig, h Host) error {
	if _, err := PodSeccompPath(p); err != nil {
		return err
	}
	if _, err := apparmorProfile(p.GetLinux().GetSecurityContext().GetApparmor(), ""); err != nil {
		return err
	}
	return checkSELinux(p.GetLinux().GetSecurityContext().GetSelinuxOptions())
}

// checkPodResources: the pod's own cgroup is kubelet's; its figures are only remembered.
func checkPodResources(p *runtimeapi.PodSandboxConfig, _ Host) error {
	return errors.Join(checkFigures("linux.overhead", p.GetLinux().GetOverhead()),
		checkFigures("linux.resources", p.GetLinux().GetResources()))
}

// ValidatePodResources is ValidatePod for what an update says (CRI UpdatePodSandboxResources).
func ValidatePodResources(overhead, resources *runtimeapi.LinuxContainerResources) error {
	return errors.Join(checkFigures("overhead", overhead), checkFigures("resources", resources))
}

func checkFigures(field string, r *runtimeapi.LinuxContainerResources) error {
	if r.GetCpuShares() < 0 || r.GetCpuPeriod() < 0 || r.GetCpuQuota() < -1 || r.GetMemoryLimitInBytes() < -1 ||
		r.GetMemorySwapLimitInBytes() < -1 {
		return check.Invalid(field, "contains a negative number")
	}
	return nil
}

func checkPodWindows(p *runtimeapi.PodSandboxConfig, _ Host) error {
	return checkNotWindows(p.GetWindows() != nil)
}

// checkNotWindows: who asks for something of Windows would not get it.
func checkNotWindows(asked bool) error {
	if asked {
		return check.Invalid("windows", "is set, but this machine runs Linux")
	}
	return nil
}
