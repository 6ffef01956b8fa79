package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/ledger"
)

// TestDamagedRecordIsCleared: a damaged record of either kind is torn down: with the default
// network, or with the configured one.
func TestDamagedRecordIsCleared(t *testing.T) {
	real := realPlugins(t)
	h := newHost(t, func(c *Config) { c.Default = true; c.BinDirs = append(c.BinDirs, real) })
	p := h.pod("p1")
	h.setup(p)
	f := h.fake("fakenet", "", "")
	h.conf("10-x.conflist", list("x", "fakenet"))
	q := h.pod("p2")
	h.setup(q)
	writeTestFile(t, h.c.ledgerFile("p1"), `{"form`, 0o600)
	data, err := os.ReadFile(h.c.debtsFile())
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, h.c.debtsFile(), strings.Replace(string(data), `"format":1`, `"format"*1`, 1), 0o600)
	writeTestFile(t, filepath.Join(h.c.recordDir(), "not a pod"), "x", 0o600)
	h.reopen()
	if got := fmt.Sprint(h.n.Debts()); got != "[p1 p2]" {
		t.Fatalf("debts %s", got)
	}
	h.teardown(p)
	h.teardown(q)
	f.wantLeases(0)
	if err := os.Remove(filepath.Join(h.c.recordDir(), "not a pod")); err != nil {
		t.Fatal(err)
	}
	if left := strings.Contains(h.snapshot(), "leases"); left {
		t.Fatalf("left: %s", h.snapshot())
	}
}

func TestRecordIsExact(t *testing.T) {
	h, _ := fakeHost(t)
	text := "{ \"cniVersion\": \"1.0.0\",\n \"name\": \"x\", \"unknown\": [1e3], \"plugins\": [ {\"type\": \"fakenet\"} ] }"
	h.conf("10-x.conflist", text)
	p := h.pod("p1")
	h.setup(p)
	data, err := os.ReadFile(h.c.debtsFile())
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(data, []byte("\n+p1 "))
	if !ok {
		t.Fatalf("debts file: %s", data)
	}
	var r ledger.Record
	if err := json.Unmarshal(bytes.TrimSpace(rest), &r); err != nil {
		t.Fatal(err)
	}
	if string(r.Conf) != text || r.NetNS != p.NetNS {
		t.Fatalf("record %+v", r)
	}
	h.teardown(p)
}

// TestNoRecordNoADD: without space for the record there is no ADD.
func TestNoRecordNoADD(t *testing.T) {
	h, f := fakeHost(t, func(c *Config) {
		wantNil(t, os.MkdirAll(c.Root, 0o755))
		wantNil(t, unix.Mount("tmpfs", c.Root, "tmpfs", 0, "size=8k"))
		t.Cleanup(func() { _ = unix.Unmount(c.Root, unix.MNT_DETACH) })
	})
	if err := os.WriteFile(filepath.Join(h.c.Root, "fill"), make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	_, err := h.n.Setup(t.Context(), h.pod("p1"))
	wantErr(t, err, errdefs.ErrResourceExhausted, "record network of pod p1")
	if f.calls("ADD") != 0 || len(h.n.Debts()) != 0 {
		t.Fatal("ADD without a record")
	}
}
