package bridge

import (
	"encoding/hex"
	"net"
	"net/netip"
	"testing"
)

// TestFrames holds the announcements against frames that were written by hand from the RFCs.
func TestFrames(t *testing.T) {
	mac := net.HardwareAddr{0x0a, 0x58, 10, 83, 0, 2}
	for name, row := range map[string]struct {
		frame []byte
		want  string
	}{
		"ARP": {arpFrame(mac, netip.MustParseAddr("10.83.0.2")),
			"ffffffffffff0a580a530002" + "0806" + "0001080006040001" + "0a580a5300020a530002" + "0000000000000a530002"},
		"neighbour advertisement": {advertisement(mac, netip.MustParseAddr("fd85::2")),
			"3333000000010a580a530002" + "86dd" + "6000000000203aff" + "fd850000000000000000000000000002" + "ff020000000000000000000000000001" +
				"8800" + "46e3" + "20000000" + "fd850000000000000000000000000002" + "02010a580a530002"},
	} {
		if got := hex.EncodeToString(row.frame); got != row.want {
			t.Errorf("%s:\n%s, want\n%s", name, got, row.want)
		}
	}
	f := advertisement(mac, netip.MustParseAddr("fd85::2"))
	pseudo := append(append([]byte{}, f[22:54]...), 0, 0, 0, 32, 0, 0, 0, 58)
	if sum := checksum(append(pseudo, f[54:]...)); sum != 0 {
		t.Errorf("the checksum is off by %#x", sum)
	}
}

func TestNames(t *testing.T) {
	a := (&Port{Bridge: "cbrabc123", ID: "p1"}).Name()
	if a != (&Port{Bridge: "cbrabc123", ID: "p1"}).Name() || len(a) != 15 || a[:4] != "veth" {
		t.Error(a)
	}
	if a == (&Port{Bridge: "cbrabc123", ID: "p2"}).Name() || a == (&Port{Bridge: "cbrabc124", ID: "p1"}).Name() {
		t.Error("two links have one name")
	}
}
