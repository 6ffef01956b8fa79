package cni

import (
	"fmt"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestDeafUplinks: a link whose IPv6 router was learned from advertisements is listed while the
// link would ignore them.
func TestDeafUplinks(t *testing.T) {
	newHost(t, withDefault(t))
	wantDeaf := func(want string) {
		t.Helper()
		links, err := DeafUplinks()
		if got := fmt.Sprint(links); err != nil || got != want {
			t.Errorf("deaf are %s, want %s: %v", got, want, err)
		}
	}
	for _, name := range []string{"up6", "up6.5", "quiet6"} {
		l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		wantNil(t, netlink.LinkAdd(l))
		t.Cleanup(func() { _ = netlink.LinkDel(l) })
		address(t, name, "fd00:1::1/64")
		writeTestFile(t, "/proc/sys/net/ipv6/conf/"+name+"/accept_ra", "1", 0)
		if name == "quiet6" { // its router was configured by hand
			continue
		}
		for _, far := range []string{"fd00:2::/64", "fd00:3::/64"} {
			_, dst, err := net.ParseCIDR(far)
			wantNil(t, err)
			wantNil(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Index, Dst: dst, Protocol: unix.RTPROT_RA, Priority: l.Index}))
		}
	}
	wantDeaf("[up6 up6.5]")
	writeTestFile(t, "/proc/sys/net/ipv6/conf/up6/accept_ra", "2", 0)
	wantDeaf("[up6.5]")
	// a program handles advertisements instead of the kernel
	writeTestFile(t, "/proc/sys/net/ipv6/conf/up6.5/accept_ra", "0", 0)
	wantDeaf("[]")
}
