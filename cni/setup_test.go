package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/cni/namespace"
)

// TestFailedRetriesHoldOneLease: ADD and DEL fail repeatedly, each time under a new pod id, as with
// a kubelet: there is one lease, and in the end none.
func TestFailedRetriesHoldOneLease(t *testing.T) {
	h, f := fakeHost(t)
	f.behave(fakeLease+`echo bad luck >&2; exit 1`, `echo no database >&2; exit 1`)
	var pods []Pod
	for i := range 30 {
		p := h.pod(fmt.Sprint("try", i))
		p.UID = "the-same"
		pods = append(pods, p)
		_, err := h.n.Setup(t.Context(), p)
		wantErr(t, err, nil, "no database")
		if n := len(f.leases()); n > 1 {
			t.Fatalf("%d leases after %d tries", n, i+1)
		}
	}
	if d := h.n.Debts(); len(d) != 1 || d[0] != "try0" {
		t.Fatalf("debts %v", d)
	}
	// Another pod is not affected.
	f.behave("", "")
	other := h.pod("other")
	h.setup(other)
	f.wantLeases(2)
	// The next attempt for the first pod cleans up before it connects.
	h.setup(pods[29])
	f.wantLeases(2)
	for _, p := range append(pods, other) {
		h.teardown(p)
	}
	f.wantLeases(0)
	if d := h.n.Debts(); len(d) != 0 {
		t.Fatalf("debts %v", d)
	}
}

// TestReplacedNetworkHoldsNothingUp: after a pod's ADD has failed, the node gets another network,
// and plugins of the old one cannot run. The pod is connected to the new network, and the DEL stays
// in Debts.
func TestReplacedNetworkHoldsNothingUp(t *testing.T) {
	for _, gone := range []bool{true, false} {
		t.Run(fmt.Sprintf("gone=%v", gone), func(t *testing.T) {
			h, f := fakeHost(t)
			f.behave(fakeLease+`exit 1`, `echo no agent >&2; exit 1`)
			old := h.pod("old")
			_, err := h.n.Setup(t.Context(), old)
			wantErr(t, err, nil, "no agent")
			if err := os.RemoveAll(h.c.ConfDir); err != nil {
				t.Fatal(err)
			}
			h.conf("10-y.conflist", list("y", "othernet"))
			other := h.fake("othernet", "", "")
			if gone {
				if err := os.Remove(f.path); err != nil {
					t.Fatal(err)
				}
			}
			p := h.pod("new")
			p.UID = old.UID
			h.setup(p)
			other.wantLeases(1)
			if d := h.n.Debts(); len(d) != 2 {
				t.Fatalf("debts %v", d)
			}
			f.behave("", "")
			h.teardown(old)
			h.teardown(p)
			f.wantLeases(0)
			other.wantLeases(0)
		})
	}
}

// TestChainHalfFailed: the second plugin of a chain fails: the first one's lease is released; DEL
// runs in reverse order.
func TestChainHalfFailed(t *testing.T) {
	h := newHost(t)
	h.conf("10-x.conflist", list("x", "first", "second"))
	first, second := h.fake("first", "", ""), h.fake("second", `exit 1`, "exit 1")
	p := h.pod("p1")
	_, err := h.n.Setup(t.Context(), p)
	wantErr(t, err, nil, "second")
	first.wantLeases(1)
	second.behave("", "")
	h.teardown(p)
	first.wantLeases(0)
	if d := h.n.Debts(); len(d) != 0 {
		t.Fatalf("debts %v", d)
	}
}

func TestDelFailsThenWorks(t *testing.T) {
	h, f := fakeHost(t)
	p := h.pod("p1")
	h.setup(p)
	f.behave("", `echo busy >&2; exit 1`)
	for range 3 {
		wantErr(t, h.n.Teardown(t.Context(), p), nil, "network x", "busy")
	}
	h.reopen()
	wantErr(t, h.n.Teardown(t.Context(), p), nil, "busy")
	f.wantLeases(1)
	f.behave("", "")
	h.teardown(p)
	f.wantLeases(0)
	h.reopen()
	if d := h.n.Debts(); len(d) != 0 {
		t.Fatalf("debts %v", d)
	}
	h.teardown(p)
	if n := f.calls("DEL"); n != 5 {
		t.Fatalf("%d DELs, want 5", n)
	}
}

func TestDelWithoutBinary(t *testing.T) {
	h, f := fakeHost(t)
	p := h.pod("p1")
	h.setup(p)
	if err := os.Rename(f.path, f.path+".away"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "plugin fakenet is not in")
	wantErr(t, h.n.Teardown(t.Context(), p), nil, "fakenet")
	q := h.pod("p2")
	_, err := h.n.Setup(t.Context(), q)
	wantErr(t, err, errdefs.ErrUnavailable, "fakenet")
	if d := h.n.Debts(); len(d) != 1 {
		t.Fatalf("debts %v", d)
	}
	if err := os.Rename(f.path+".away", f.path); err != nil {
		t.Fatal(err)
	}
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	h.teardown(p)
	f.wantLeases(0)
}

// TestConfGoneOrReplaced: between ADD and DEL the configuration is removed or replaced; DEL uses
// that of ADD.
func TestConfGoneOrReplaced(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		t.Run(fmt.Sprintf("replaced=%v", replaced), func(t *testing.T) {
			h, f := fakeHost(t)
			p := h.pod("p1")
			p.Ports = []Port{{HostPort: 8080, ContainerPort: 80}}
			h.setup(p)
			if err := os.RemoveAll(h.c.ConfDir); err != nil {
				t.Fatal(err)
			}
			var other *fake
			if replaced {
				h.conf("10-y.conflist", list("y", "othernet"))
				other = h.fake("othernet", "", "")
			}
			h.reopen()
			h.teardown(p)
			f.wantLeases(0)
			if !strings.Contains(f.read("stdin.DEL"), `"name":"x"`) || !strings.Contains(f.read("stdin.DEL"), `"hostPort":8080`) {
				t.Fatalf("DEL got %s", f.read("stdin.DEL"))
			}
			if other != nil && other.calls("DEL") != 0 {
				t.Fatal("DEL went to the wrong network")
			}
		})
	}
}

func TestDelWithoutNetNS(t *testing.T) {
	h, f := fakeHost(t)
	for _, leave := range []string{"nothing", "ordinary file"} {
		p := h.pod("p1")
		h.setup(p)
		if err := namespace.Remove(p.NetNS); err != nil {
			t.Fatal(err)
		}
		if leave != "nothing" {
			writeTestFile(t, p.NetNS, "", 0o600)
		}
		h.teardown(p)
		if !strings.HasSuffix(f.read("calls"), "DEL p1 \n") {
			t.Fatalf("%s: DEL was shown a namespace: %q", leave, f.read("calls"))
		}
	}
}

func TestTeardownOfNothing(t *testing.T) {
	h, f := fakeHost(t)
	h.teardown(Pod{ID: "never"})
	if f.calls("DEL") != 0 {
		t.Fatal("DEL for a pod without ADD")
	}
	wantErr(t, h.n.Teardown(t.Context(), Pod{ID: "../x"}), errdefs.ErrInvalidArgument)
}

// TestArgsInjection: a value cannot become another argument.
func TestArgsInjection(t *testing.T) {
	h, f := fakeHost(t)
	good := h.pod("p1")
	for _, bad := range []string{"a;K8S_POD_NAMESPACE=kube-system", "a=b", "a;b", "a\x00b", "a\nb", "\xff"} {
		for _, set := range []func(*Pod){
			func(p *Pod) { p.Name = bad }, func(p *Pod) { p.Namespace = bad }, func(p *Pod) { p.UID = bad }, func(p *Pod) { p.ID = bad },
		} {
			p := good
			set(&p)
			_, err := h.n.Setup(t.Context(), p)
			wantErr(t, err, errdefs.ErrInvalidArgument)
		}
	}
	if f.calls("ADD") != 0 || len(h.n.Debts()) != 0 {
		t.Fatalf("a plugin was run: %s", f.read("calls"))
	}
}

func TestPorts(t *testing.T) {
	bad := []Port{
		{HostPort: -1, ContainerPort: 80}, {HostPort: 65536, ContainerPort: 80}, {HostPort: 80}, {HostPort: 80, ContainerPort: 65536},
		{HostPort: 80, ContainerPort: 80, Protocol: "icmp"}, {HostPort: 80, ContainerPort: 80, HostIP: "1.2.3.4 accept"},
		{HostPort: 80, ContainerPort: 80, HostIP: "fe80::1%eth0"}, {HostPort: 80, ContainerPort: 80, HostIP: "localhost"},
	}
	for _, port := range bad {
		p := Pod{ID: "p", Ports: []Port{port}}
		_, err := p.capabilities(nil)
		wantErr(t, err, errdefs.ErrInvalidArgument)
	}
	twice := Pod{ID: "p", Ports: []Port{{HostPort: 80, ContainerPort: 80}, {Protocol: "TCP", HostPort: 80, ContainerPort: 81}}}
	_, err := twice.capabilities(nil)
	wantErr(t, err, errdefs.ErrInvalidArgument, "twice")
	p := Pod{ID: "p", Ports: []Port{
		{ContainerPort: 81}, {HostPort: 80, ContainerPort: 81}, {Protocol: "UDP", HostPort: 80, ContainerPort: 81, HostIP: "::ffff:1.2.3.4"},
	}}
	caps, err := p.capabilities(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(caps)
	want := `{"portMappings":[{"hostPort":80,"containerPort":81,"protocol":"tcp","hostIP":""},{"hostPort":80,"containerPort":81,"protocol":"udp","hostIP":"1.2.3.4"}]}`
	if string(got) != want {
		t.Fatalf("got %s", got)
	}
}

// TestCapabilities: capabilities are passed only to plugins that request them in their
// configuration.
func TestCapabilities(t *testing.T) {
	h := newHost(t)
	h.conf("10-x.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"asks","capabilities":{"portMappings":true,"bandwidth":true,"dns":true}},{"type":"silent"}]}`)
	asks := h.fake("asks", "", "")
	silent := h.fake("silent", "", "")
	p := h.pod("p1")
	p.Ports = []Port{{HostPort: 8080, ContainerPort: 80}}
	p.DNS = DNS{Servers: []string{"10.0.0.10"}}
	p.Annotations = map[string]string{ingressAnnotation: "1M", egressAnnotation: "2Mi"}
	h.setup(p)
	for _, part := range []string{`"hostPort":8080`, `"ingressRate":1000000`, `"egressRate":2097152`, `"servers":["10.0.0.10"]`} {
		if !strings.Contains(asks.read("stdin.ADD"), part) {
			t.Errorf("ADD without %s: %s", part, asks.read("stdin.ADD"))
		}
	}
	if strings.Contains(silent.read("stdin.ADD"), "runtimeConfig") {
		t.Errorf("unasked: %s", silent.read("stdin.ADD"))
	}
	p.Annotations = map[string]string{ingressAnnotation: "fast"}
	_, err := h.n.Setup(t.Context(), p)
	wantErr(t, err, errdefs.ErrInvalidArgument, "fast")
	h.teardown(p)
}

func TestQuantity(t *testing.T) {
	good := map[string]uint64{"1": 1, "10k": 10_000, "1.5M": 1_500_000, "1Ki": 1024, "2Gi": 2 << 30, "1e3": 1000, "1E3": 1000, "1500m": 2, ".5k": 500, "1E": 1e18, "+1": 1}
	for s, want := range good {
		if got, err := parseQuantity(s); err != nil || got != want {
			t.Errorf("%s: %d %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "k", "1kk", "-1", "1e999", "1 M", "0x10", "1_000", "999999999999999999999999", "1e99", "1.2.3", "NaN"} {
		if v, err := parseQuantity(s); err == nil {
			t.Errorf("%q is %d", s, v)
		}
	}
	for _, s := range []string{"999", "2P"} {
		_, err := bandwidthOf(map[string]string{ingressAnnotation: s})
		wantErr(t, err, errdefs.ErrInvalidArgument)
	}
}

// TestConcurrentPods: many pods are set up and torn down concurrently.
func TestConcurrentPods(t *testing.T) {
	h, f := fakeHost(t)
	var wg sync.WaitGroup
	for i := range 12 {
		p := h.pod(fmt.Sprint("p", i))
		wg.Go(func() {
			if _, err := h.n.Setup(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { _ = h.n.Ready(); h.n.Debts() })
		wg.Go(func() { _ = h.n.Teardown(t.Context(), p) })
	}
	wg.Wait()
	h.reopen()
	for _, id := range h.n.Debts() {
		h.teardown(Pod{ID: id})
	}
	f.wantLeases(0)
	if st, err := os.Stat(h.c.debtsFile()); err != nil || st.Size() != 0 {
		t.Fatalf("debts file: %v %v", st, err)
	}
}
