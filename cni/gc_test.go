package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// gcHost is a host with one network of CNI 1.1.0, whose plugin on GC releases the leases that are
// not in the list.
func gcHost(t *testing.T) (*host, *fake) {
	h := newHost(t)
	h.ignoreOthers()
	f := h.fake("fakenet", "", "")
	f.status("true")
	h.conf("10-x.conflist", strings.Replace(list("x", "fakenet"), `"1.0.0"`, `"1.1.0"`, 1))
	return h, f
}

// ignoreOthers replaces the folder of other runtimes by an empty one: the test machine may have
// some.
func (h *host) ignoreOthers() {
	h.n.others = filepath.Join(filepath.Dir(h.c.Root), "others")
}

// named returns the pods that the plugin got as in use.
func (f *fake) named() []string {
	f.t.Helper()
	var told struct {
		Valid []struct{ ContainerID, IfName string } `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal([]byte(f.read("stdin.GC")), &told); err != nil {
		f.t.Fatal(err)
	}
	var ids []string
	for _, a := range told.Valid {
		ids = append(ids, a.ContainerID+"/"+a.IfName)
	}
	return ids
}

// TestGCNamesAll: after a restart the list has every attachment that is not undone: running pods,
// and those with a pending DEL.
func TestGCNamesAll(t *testing.T) {
	h, f := gcHost(t)
	h.fake("other", "", "")
	h.conf("05-y.conflist", list("y", "other"))
	h.setup(h.pod("of-another-network"))
	if err := os.Remove(filepath.Join(h.c.ConfDir, "05-y.conflist")); err != nil {
		t.Fatal(err)
	}
	h.setup(h.pod("p1"))
	h.setup(h.pod("gone"))
	h.teardown(Pod{ID: "gone"})
	h.reopen()
	h.ignoreOthers()
	h.setup(h.pod("p2"))
	if err := h.n.CollectGarbage(t.Context(), []string{"p1", "p2"}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(f.named()); got != "[of-another-network/eth0 p1/eth0 p2/eth0]" {
		t.Errorf("in use are %s", got)
	}
	if f.calls("DEL") != 1 || f.calls("GC") != 1 {
		t.Errorf("the plugin was called %s", f.read("calls"))
	}
}

// TestGCHostLocal: the real host-local releases a lease without a pod, and keeps those of pods.
func TestGCHostLocal(t *testing.T) {
	dir := realPlugins(t)
	h := newHost(t, func(c *Config) { c.BinDirs = []string{dir} })
	h.ignoreOthers()
	leases := filepath.Join(h.c.State, "leases")
	h.conf("10-x.conflist", fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "x", "plugins": [
		{"type": "host-local", "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.86.0.0/24"}]]}}]}`, leases))
	ip := h.setup(h.pod("p1")).IPs[0].String()
	leaked := filepath.Join(leases, "x", "10.86.0.77")
	writeTestFile(t, leaked, "nobody\r\neth0", 0o600)
	h.reopen()
	h.ignoreOthers()
	if err := h.n.CollectGarbage(t.Context(), []string{"p1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(leaked); err == nil {
		t.Error("a lease of nobody is kept")
	}
	if _, err := os.Stat(filepath.Join(leases, "x", ip)); err != nil {
		t.Errorf("the lease of a pod is gone: %v", err)
	}
}

// TestGCSkippedWhenListIncomplete: no plugin is called if the list may be incomplete.
func TestGCSkippedWhenListIncomplete(t *testing.T) {
	for name, c := range map[string]struct {
		doubt func(*host)
		class error
		say   string
	}{
		"a debt that cannot be read": {func(h *host) {
			data, err := os.ReadFile(h.c.debtsFile())
			if err != nil {
				h.t.Fatal(err)
			}
			writeTestFile(h.t, h.c.debtsFile(), strings.Replace(string(data), "+p1 {", "+p1 [", 1), 0o600)
			h.reopen()
		}, errdefs.ErrFailedPrecondition, "release of pod p1 is damaged"},
		"a debt of a later version": {func(h *host) {
			data, err := os.ReadFile(h.c.debtsFile())
			if err != nil {
				h.t.Fatal(err)
			}
			writeTestFile(h.t, h.c.debtsFile(), strings.Replace(string(data), `"format":1`, `"format":9`, 1), 0o600)
			h.reopen()
		}, errdefs.ErrFailedPrecondition, "damaged"},
		"a debt of nobody": {func(h *host) {
			data, err := os.ReadFile(h.c.debtsFile())
			if err != nil {
				h.t.Fatal(err)
			}
			writeTestFile(h.t, h.c.debtsFile(), "\n+/ {}\n"+string(data), 0o600)
			h.reopen()
		}, errdefs.ErrFailedPrecondition, "do not name a pod"},
		"a hole among the debts": {func(h *host) {
			data, err := os.ReadFile(h.c.debtsFile())
			if err != nil {
				h.t.Fatal(err)
			}
			writeTestFile(h.t, h.c.debtsFile(), string(make([]byte, 100))+string(data), 0o600)
			h.reopen()
		}, errdefs.ErrFailedPrecondition, "has a gap"},
		"a record that cannot be read": {func(h *host) {
			writeTestFile(h.t, h.c.ledgerFile("p7"), "{", 0o600)
			h.reopen()
		}, errdefs.ErrFailedPrecondition, "record of pod p7 is damaged"},
		"a file that is no record": {func(h *host) {
			writeTestFile(h.t, h.c.ledgerFile("~p7"), "", 0o600)
			h.reopen()
		}, errdefs.ErrFailedPrecondition, "is not a network record"},
		"the debts are gone, the pod is not": {func(h *host) {
			writeTestFile(h.t, h.c.debtsFile(), "", 0o600)
			h.reopen()
		}, errdefs.ErrUnavailable, "pod p1 is connected but has no record"},
		"another runtime": {func(h *host) {
			writeTestFile(h.t, filepath.Join(h.n.others, "x-abc-eth0"), `{"kind":"cniCacheV1","containerId":"abc","networkName":"x"}`, 0o600)
		}, errdefs.ErrUnavailable, "another runtime uses it"},
		"another runtime's file that cannot be read": {func(h *host) {
			writeTestFile(h.t, filepath.Join(h.n.others, "x-abc-eth0"), `{"kind`, 0o600)
		}, errdefs.ErrUnavailable, "another runtime uses it"},
		"a plugin that is not ready": {func(h *host) {
			h.fake("fakenet", "", "").status(cniError(50, "away", ""))
			h.reopen()
			h.settled(func(err error) bool { return err != nil })
		}, errdefs.ErrUnavailable, "away"},
	} {
		t.Run(name, func(t *testing.T) {
			h, f := gcHost(t)
			h.setup(h.pod("p1"))
			c.doubt(h)
			others := h.n.others
			if h.ignoreOthers(); others != othersResults {
				h.n.others = others
			}
			wantErr(t, h.n.CollectGarbage(t.Context(), []string{"p1"}), c.class, c.say)
			if f.calls("GC") != 0 {
				t.Error("the plugin was told all the same")
			}
		})
	}
	t.Run("sure", func(t *testing.T) {
		h, f := gcHost(t)
		h.setup(h.pod("p1"))
		writeTestFile(t, filepath.Join(h.n.others, "y-abc-eth0"), `{"networkName":"y"}`, 0o600)
		writeTestFile(t, filepath.Join(h.n.others, "x-y-abc-eth0"), `{"containerId":"abc","networkName":"x-y"}`, 0o600)
		if err := h.n.CollectGarbage(t.Context(), []string{"p1"}); err != nil || f.calls("GC") != 1 {
			t.Errorf("%d calls, %v", f.calls("GC"), err)
		}
	})
}

// TestGCDisabled: plugins are not called before CNI 1.1.0, or if the configuration forbids it.
func TestGCDisabled(t *testing.T) {
	h, f := gcHost(t)
	for _, conf := range []string{list("x", "fakenet"), `{"cniVersion": "1.1.0", "disableGC": true, "name": "x", "plugins": [{"type": "fakenet"}]}`} {
		h.conf("10-x.conflist", conf)
		if err := h.n.CollectGarbage(t.Context(), nil); err != nil || f.calls("GC") != 0 {
			t.Errorf("%s: %d calls, %v", conf, f.calls("GC"), err)
		}
	}
}

// TestGCAndAdd: there is no GC while a pod is being connected, and a pod waits while GC is running.
func TestGCAndAdd(t *testing.T) {
	h, f := gcHost(t)
	fifo := filepath.Join(f.dir, "wait")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	wait := "read line <" + fifo + "; "
	f.does(map[string]string{"STATUS": "true", "GC": wait + "echo END >> $D/calls", "ADD": wait + fakeLease + fakeResult})
	p, q := h.pod("p1"), h.pod("p2")
	added, collected := make(chan error, 1), make(chan error, 1)
	add := func(p Pod) {
		_, err := h.n.Setup(t.Context(), p)
		added <- err
	}
	go add(p)
	release := f.waiting(fifo)
	wantErr(t, h.n.CollectGarbage(t.Context(), nil), errdefs.ErrUnavailable, "pods are being connected")
	release()
	wantNil(t, <-added)

	go func() { collected <- h.n.CollectGarbage(t.Context(), []string{"p1"}) }()
	release = f.waiting(fifo)
	go add(q)
	for !h.n.turns.Taken("p2") {
		runtime.Gosched()
	}
	release()
	wantNil(t, <-collected)
	f.waiting(fifo)()
	wantNil(t, <-added)
	if calls := f.read("calls"); strings.Index(calls, "END") > strings.Index(calls, "ADD p2") {
		t.Errorf("the pod did not wait:\n%s", calls)
	}
	if ids := f.named(); !slices.Equal(ids, []string{"p1/eth0"}) {
		t.Errorf("in use were %v", ids)
	}
}

// waiting returns when the plugin waits for a line from the FIFO; release writes one.
func (f *fake) waiting(fifo string) (release func()) {
	f.t.Helper()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	return func() {
		_, err := w.WriteString("go\n")
		wantNil(f.t, errors.Join(err, w.Close()))
	}
}

func wantNil(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
