package cni

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/cni/ledger"
)

// Pod is what a network needs to know about a pod.
type Pod struct {
	ID        string // CNI's container id; used as a file name
	Name      string
	Namespace string
	UID       string
	NetNS     string // path of a pinned network namespace
	Ports     []Port // CRI PodSandboxConfig.port_mappings; those with host port 0 are ignored
	// Annotations are passed to plugins that want them. Setup itself uses
	// kubernetes.io/ingress-bandwidth and egress-bandwidth.
	Annotations  map[string]string
	CgroupParent string   // passed to plugins that want it
	DNS          DNS      // passed to plugins that want it
	Lock         *os.File // every plugin inherits it; may be nil
}

// DNS is CRI's DNSConfig.
type DNS struct{ Servers, Searches, Options []string }

// Port is a port of the host that is forwarded to a port of the pod.
type Port struct {
	Protocol      string // tcp, udp or sctp, in any case; "" = tcp
	HostPort      int32
	ContainerPort int32
	// HostIP is "" for every address of the host, 0.0.0.0 for every IPv4 address, :: for every IPv6
	// address.
	HostIP string
}

// Result is what a pod got from the network.
type Result struct {
	IPs []netip.Addr // in the plugin's order, at least one
}

func (p *Pod) checkID() error {
	if !ledger.ValidID.MatchString(p.ID) {
		return fmt.Errorf("pod id %q: %w", p.ID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// args returns CNI_ARGS. ErrInvalidArgument for a value that would become a second argument or a
// new line.
func (p *Pod) args() ([][2]string, error) {
	args := [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
		{"K8S_POD_UID", p.UID},
	}
	for _, kv := range args {
		if !utf8.ValidString(kv[1]) || strings.ContainsFunc(kv[1], splitsArgs) {
			return nil, fmt.Errorf("%s %q of pod %s cannot be passed to a plugin: %w",
				kv[0], kv[1], p.ID, errdefs.ErrInvalidArgument)
		}
	}
	return args, nil
}

func splitsArgs(r rune) bool { return r == ';' || r == '=' || unicode.IsControl(r) }

// capabilities returns the values that plugins can request in their configuration; libcni passes
// each plugin what it requests.
func (p *Pod) capabilities(subnets []netip.Prefix) (map[string]any, error) {
	caps := map[string]any{}
	ports, err := p.portMappings()
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	shape, err := bandwidthOf(p.Annotations)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	if shape != nil {
		caps["bandwidth"] = shape
	}
	if len(p.DNS.Servers)+len(p.DNS.Searches)+len(p.DNS.Options) > 0 {
		caps["dns"] = map[string]any{"servers": p.DNS.Servers, "searches": p.DNS.Searches, "options": p.DNS.Options}
	}
	if p.CgroupParent != "" {
		caps["cgroupPath"] = p.CgroupParent
	}
	if len(p.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if len(subnets) > 0 {
		caps["ipRanges"] = rangesOf(subnets)
	}
	return caps, nil
}

func rangesOf(subnets []netip.Prefix) [][]map[string]string {
	var ranges [][]map[string]string
	for _, s := range subnets {
		ranges = append(ranges, []map[string]string{{"subnet": s.String()}})
	}
	return ranges
}

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// portMappings validates the ports, because plugins copy them into firewall rules.
func (p *Pod) portMappings() ([]portMapping, error) {
	var all []portMapping
	taken := map[portMapping]int32{} // key: everything but the pod's port
	for _, port := range p.Ports {
		if port.HostPort == 0 {
			continue
		}
		m := portMapping{port.HostPort, port.ContainerPort, strings.ToLower(port.Protocol), port.HostIP}
		if err := m.check(); err != nil {
			return nil, err
		}
		key := m
		key.ContainerPort = 0
		switch taken[key] {
		case 0:
			taken[key] = m.ContainerPort
			all = append(all, m)
		case m.ContainerPort: // a duplicate
		default:
			return nil, fmt.Errorf("host port %d is requested twice, for ports %d and %d: %w", m.HostPort, taken[key],
				m.ContainerPort, errdefs.ErrInvalidArgument)
		}
	}
	return all, nil
}

func (m *portMapping) check() error {
	if m.Protocol == "" {
		m.Protocol = "tcp"
	}
	if m.Protocol != "tcp" && m.Protocol != "udp" && m.Protocol != "sctp" {
		return fmt.Errorf("port protocol %q: %w", m.Protocol, errdefs.ErrInvalidArgument)
	}
	for _, n := range []int32{m.HostPort, m.ContainerPort} {
		if n < 1 || n > 65535 {
			return fmt.Errorf("port %d: %w", n, errdefs.ErrInvalidArgument)
		}
	}
	if m.HostIP == "" {
		return nil
	}
	a, err := netip.ParseAddr(m.HostIP)
	if err != nil || a.Zone() != "" {
		return fmt.Errorf("host address %q of port %d: %w", m.HostIP, m.HostPort, errdefs.ErrInvalidArgument)
	}
	m.HostIP = a.Unmap().String()
	return nil
}
