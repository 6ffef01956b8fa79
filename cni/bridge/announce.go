package bridge

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Announcer tells the neighbours of a container, once the bridge lets packets pass, which hardware
// address its addresses have now: gratuitous ARP and unsolicited neighbour advertisements. Whoever
// still remembers an earlier container with such an address learns the new one at once.
type Announcer struct {
	socket    int
	link      int
	mac       net.HardwareAddr
	addresses []netip.Prefix
}

// newAnnouncer opens the socket in the namespace of the calling thread; nil if it cannot be had.
func newAnnouncer(link int, mac net.HardwareAddr, addresses []netip.Prefix) *Announcer {
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	return &Announcer{socket: s, link: link, mac: mac, addresses: addresses}
}

// Send sends the announcements. They are a courtesy: a neighbour that misses them asks after a
// while. It may be called on nil.
func (a *Announcer) Send() {
	if a == nil {
		return
	}
	for _, p := range a.addresses {
		frame, protocol := arpFrame(a.mac, p.Addr()), uint16(unix.ETH_P_ARP)
		if p.Addr().Is6() {
			frame, protocol = advertisement(a.mac, p.Addr()), unix.ETH_P_IPV6
		}
		to := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: a.link, Halen: 6}
		copy(to.Addr[:], frame[:6])
		_ = unix.Sendto(a.socket, frame, 0, to)
	}
}

// Close closes the socket. It may be called on nil.
func (a *Announcer) Close() {
	if a != nil {
		_ = unix.Close(a.socket)
	}
}

// arpFrame is an ARP request for the sender's own address (RFC 5227, 3).
func arpFrame(mac net.HardwareAddr, ip netip.Addr) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	f = append(f, 0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1) // Ethernet, IPv4, request
	f = append(append(f, mac...), ip.AsSlice()...)
	return append(append(f, 0, 0, 0, 0, 0, 0), ip.AsSlice()...)
}

// advertisement is an unsolicited neighbour advertisement to all nodes (RFC 4861, 7.2.6).
func advertisement(mac net.HardwareAddr, ip netip.Addr) []byte {
	all := netip.MustParseAddr("ff02::1")
	icmp := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, ip.AsSlice()...) // override
	icmp = append(append(icmp, 2, 1), mac...)                            // target link-layer address
	pseudo := append(append(ip.AsSlice(), all.AsSlice()...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))
	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	f = append(append(f, ip.AsSlice()...), all.AsSlice()...)
	return append(f, icmp...)
}

// checksum is the one of the internet protocols (RFC 1071), of an even number of bytes.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
