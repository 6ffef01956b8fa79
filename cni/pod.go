package cni

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

// Pod is what a network needs to know of a pod.
type Pod struct {
	ID           string // CNI's container id; becomes a file name
	Name         string
	Namespace    string
	UID          string
	NetNS        string            // path of a pinned network namespace
	Ports        []Port            // CRI PodSandboxConfig.port_mappings; those with host port 0 are dropped
	Annotations  map[string]string // kubernetes.io/ingress-bandwidth and egress-bandwidth are read, all passed to plugins that ask
	CgroupParent string            // passed to plugins that ask
	DNS          DNS               // passed to plugins that ask
	Lock         *os.File          // inherited by every plugin; may be nil
}

// DNS is CRI's DNSConfig.
type DNS struct{ Servers, Searches, Options []string }

// Port is a port of the host that leads to one of the pod.
type Port struct {
	Protocol      string // tcp, udp or sctp, in any case; "" = tcp
	HostPort      int32
	ContainerPort int32
	HostIP        string // "" = every address of the host, 0.0.0.0 every one of IPv4, :: every one of IPv6
}

// Result is what the network gave a pod.
type Result struct {
	IPs []netip.Addr // in the plugin's order, at least one
}

func (p *Pod) checkID() error {
	if !podID.MatchString(p.ID) {
		return fmt.Errorf("pod id %q: %w", p.ID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// args is CNI_ARGS. A value that could become a second one, or a line, is refused.
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
			return nil, fmt.Errorf("%s %q of pod %s cannot be passed to a plugin: %w", kv[0], kv[1], p.ID, errdefs.ErrInvalidArgument)
		}
	}
	return args, nil
}

func splitsArgs(r rune) bool { return r == ';' || r == '=' || unicode.IsControl(r) }

// capabilities is what plugins may ask for in their configuration; libcni passes to each what it
// asked for.
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

// portMappings checks what a plugin pastes into firewall rules.
func (p *Pod) portMappings() ([]portMapping, error) {
	var all []portMapping
	taken := map[portMapping]int32{} // by everything but the port of the pod
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
		case m.ContainerPort: // the same once more
		default:
			return nil, fmt.Errorf("host port %d is asked for twice, for ports %d and %d: %w", m.HostPort, taken[key],
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
