package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// name returns the name of the current network; "" and the reason when there is none.
func (h *host) name() (string, error) {
	w, err := h.n.current(h.t.Context())
	if err != nil {
		return "", err
	}
	return w.name, nil
}

func (h *host) wantNetwork(want string) {
	h.t.Helper()
	if got, err := h.name(); got != want {
		h.t.Fatalf("network %q, want %q: %v", got, want, err)
	}
}

func TestFolder(t *testing.T) {
	h := newHost(t)
	h.fake("fakenet", "", "")
	h.wantNetwork("")
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "no network configuration in")
	h.conf("20-b.conflist", list("b", "fakenet"))
	h.wantNetwork("b")
	h.conf("10-a.conf", `{"cniVersion":"1.0.0","name":"a","type":"fakenet"}`)
	h.wantNetwork("a")
	h.conf("05-c.json", `{"cniVersion":"1.0.0","name":"c","plugins":[{"type":"fakenet"}]}`)
	h.wantNetwork("c")
	h.conf("01-ignored.txt", list("d", "fakenet"))
	h.conf("02-broken.conflist", `{"name":`)
	h.conf("03-noplugins.conflist", `{"cniVersion":"1.0.0","name":"e","plugins":[]}`)
	h.conf("04-noname.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"fakenet"}]}`)
	h.wantNetwork("c")
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	// The folder is removed and created again.
	if err := os.RemoveAll(h.c.ConfDir); err != nil {
		t.Fatal(err)
	}
	h.wantNetwork("")
	h.conf("10-f.conflist", list("f", "fakenet"))
	h.wantNetwork("f")
	p := h.pod("p1")
	h.setup(p)
	h.teardown(p)
}

// TestForeignNetworkWithoutNft: with a network that is not ours nft is not run, because it loads
// kernel modules.
func TestForeignNetworkWithoutNft(t *testing.T) {
	h := newHost(t)
	h.fake("fakenet", "", "")
	h.conf("10-a.conflist", list("a", "fakenet"))
	h.reopen()
	for range 2 {
		h.wantNetwork("a")
	}
	if m := h.n.own.masq; m.usable || !m.asked.IsZero() {
		t.Error("nft was asked")
	}
}

// TestHalfWrittenOwn: our own network does not stay in use with an old subnet.
func TestHalfWrittenOwn(t *testing.T) {
	h := newHost(t, withDefault(t), func(c *Config) { c.Default = false })
	h.conf("10-own.conflist", list("own", ownType))
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	h.conf("10-own.conflist", "{")
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := h.n.SetPodCIDR("10.86.0.0/24"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "10-own.conflist")
}

// TestHalfWritten: the network stays while its file is being rewritten.
func TestHalfWritten(t *testing.T) {
	h := newHost(t)
	h.fake("fakenet", "", "")
	h.conf("10-a.conflist", list("a", "fakenet"))
	h.conf("20-b.conflist", list("b", "fakenet"))
	h.wantNetwork("a")
	next := list("anew", "fakenet")
	for _, n := range []int{0, 1, len(next) / 2, len(next) - 1} {
		h.conf("10-a.conflist", next[:n])
		h.wantNetwork("a")
	}
	h.conf("10-a.conflist", next)
	h.wantNetwork("anew")
	if err := os.Remove(filepath.Join(h.c.ConfDir, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	h.wantNetwork("b")
	// The folder cannot be read for a while, because a file has its name.
	if err := os.Rename(h.c.ConfDir, h.c.ConfDir+".away"); err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, h.c.ConfDir, "", 0o644)
	h.wantNetwork("b")
	if err := os.Remove(h.c.ConfDir); err != nil {
		t.Fatal(err)
	}
	h.wantNetwork("")
}

// TestChangeOfSameSize: a change with the same size and old times is detected by inode or change
// time.
func TestChangeOfSameSize(t *testing.T) {
	h := newHost(t)
	h.fake("fakenet", "", "")
	old := time.Now().Add(-time.Hour)
	for i, name := range []string{"a", "b", "c", "d"} {
		h.conf("10-a.conflist", list(name, "fakenet"))
		if err := os.Chtimes(filepath.Join(h.c.ConfDir, "10-a.conflist"), old, old); err != nil {
			t.Fatal(err)
		}
		h.wantNetwork(name)
		_ = i
	}
}

// TestRefusedTypes: the error for a forbidden plugin name contains the file, and nothing is
// executed.
func TestRefusedTypes(t *testing.T) {
	for _, plugin := range []string{"../../bin/evil", "/bin/sh", "..", "a/b", "evil ", "x..y"} {
		t.Run(fmt.Sprintf("%q", plugin), func(t *testing.T) {
			h := newHost(t, func(c *Config) { c.Default = true })
			h.fake("evil", "", "")
			h.conf("10-a.conflist", list("a", plugin))
			wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "not a plain name", "10-a.conflist")
			_, err := h.n.Setup(t.Context(), h.pod("p1"))
			wantErr(t, err, errdefs.ErrUnavailable)
			h.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"evil","ipam":{"type":"`+plugin+`"}}]}`)
			wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "ipam")
			if calls := h.fake("evil", "", "").read("calls"); calls != "" {
				t.Fatalf("executed: %s", calls)
			}
		})
	}
}

func TestRefusedFiles(t *testing.T) {
	h := newHost(t)
	h.fake("fakenet", "", "")
	for _, bad := range []string{`{"name":"../x","plugins":[{"type":"fakenet"}]}`, `{"name":"a/b","type":"fakenet"}`, `[]`, `null`, `"x"`,
		`{"name":"a","cniVersion":"one","plugins":[{"type":"fakenet"}]}`, `{"name":"a","plugins":[{"type":7}]}`} {
		h.conf("10-a.conflist", bad)
		h.wantNetwork("")
	}
	if err := os.Remove(filepath.Join(h.c.ConfDir, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(h.c.ConfDir, "10-a.conflist"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.wantNetwork("")
	h.conf("11-long.conflist", list("b", "fakenet")+strings.Repeat(" ", maxConfBytes))
	h.wantNetwork("")
	h.conf("12-c.conflist", list("c", "fakenet"))
	h.wantNetwork("c")
}

// TestReadyNamesPlugin: an installer has written the configuration before the plugins.
func TestReadyNamesPlugin(t *testing.T) {
	h := newHost(t)
	h.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`)
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "plugin bridge is not in "+h.c.BinDirs[0])
	h.fake("bridge", "", "")
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "plugin host-local")
	h.fake("host-local", "", "")
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
}

// TestDefaultGivesWay: the default network is used only while the folder is empty. A network in the
// folder replaces it, and with a broken file there is no network.
func TestDefaultGivesWay(t *testing.T) {
	h := newHost(t, func(c *Config) { c.Default = true })
	h.wantNetwork("cribox-abc123")
	h.conf("10-a.conflist", list("a", "fakenet"))
	h.wantNetwork("a")
	if err := os.Remove(filepath.Join(h.c.ConfDir, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	h.wantNetwork("cribox-abc123")
	if err := h.n.Ready(); err != nil {
		t.Errorf("the default network needs a plugin: %v", err)
	}
	h.useNft(false)
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "plugin bridge")
	h.conf("10-a.conflist", `{"name":`)
	h.wantNetwork("")
}

// TestSidePlugins: side plugins are part of the list, and of what is stored for DEL.
func TestSidePlugins(t *testing.T) {
	h := newHost(t)
	f, side := h.fake("fakenet", "", ""), h.fake("side", "", "")
	h.conf("10-a.conflist", list("a", "fakenet"))
	h.wantNetwork("a")
	writeTestFile(t, filepath.Join(h.c.ConfDir, "a", "50.conf"), `{"type":"side"}`, 0o644)
	p := h.pod("p1")
	h.setup(p)
	if f.calls("ADD") != 1 || side.calls("ADD") != 1 {
		t.Fatal("a plugin of the chain was left out")
	}
	if err := os.RemoveAll(filepath.Join(h.c.ConfDir, "a")); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	h.teardown(p)
	side.wantLeases(0)
}

// TestVersionProbe: the network is not ready if a plugin reports that it does not support the
// configuration's version. Each plugin is asked once.
func TestVersionProbe(t *testing.T) {
	h := newHost(t)
	f := h.fake("fakenet", "", "")
	h.conf("10-a.conflist", `{"cniVersion":"1.1.0","name":"a","plugins":[{"type":"fakenet"}]}`)
	w, err := h.n.current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.n.probe.ask(f.path, identity(f.path))
	wantErr(t, h.n.usable(w), errdefs.ErrUnavailable, "fakenet does not support CNI 1.1.0")
	if h.n.probe.claim(identity(f.path)) {
		t.Fatal("asked again")
	}
	h.conf("10-a.conflist", list("a", "fakenet"))
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
}
