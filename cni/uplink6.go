package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const ipv6Settings = "/proc/sys/net/ipv6/conf"

// ForwardsIPv6 reports whether this host already forwards IPv6. A network with an IPv6 range
// enables that.
func ForwardsIPv6() bool {
	b, err := os.ReadFile(filepath.Join(ipv6Settings, "all", "forwarding"))
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// DeafUplinks returns the links on which this host learned its IPv6 router from router
// advertisements, and which would ignore them once the host forwards: with accept_ra = 1 the kernel
// accepts advertisements only on a host that does not forward.
func DeafUplinks() ([]string, error) {
	learned := &netlink.Route{Protocol: unix.RTPROT_RA}
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, learned, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list IPv6 routes: %w", err)
	}
	var deaf []string
	for _, r := range routes {
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("link of route %s: %w", r.Dst, err)
		}
		name := l.Attrs().Name
		accepts, err := os.ReadFile(filepath.Join(ipv6Settings, name, "accept_ra"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if strings.TrimSpace(string(accepts)) == "1" && !slices.Contains(deaf, name) {
			deaf = append(deaf, name)
		}
	}
	return deaf, nil
}
