package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func testLedger(t *testing.T, dir string) *ledger {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "cni"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := openLedger(t.Context(), filepath.Join(dir, "cni.debts"), filepath.Join(dir, "cni"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func foreign(pod string, bytes int) record {
	return record{Format: recordFormat, Pod: pod, Network: "x", Conf: make([]byte, bytes), Args: [][2]string{{"K8S_POD_NAME", pod}}}
}

func begin(t *testing.T, l *ledger, r record) {
	t.Helper()
	if err := l.begin(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func TestLedgerReopens(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	begin(t, l, foreign("a", 10))
	own := foreign("b", 10)
	own.Default = true
	begin(t, l, own)
	begin(t, l, foreign("c", 10))
	if err := l.clear(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	l = testLedger(t, dir)
	if got := fmt.Sprint(l.ids()); got != "[b c]" {
		t.Fatalf("debts %s", got)
	}
	if d, _ := l.get("c"); d.Args[0][1] != "c" || len(d.Conf) != 10 {
		t.Fatalf("record %+v", d)
	}
	for _, id := range l.ids() {
		if err := l.clear(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if got := testLedger(t, dir).ids(); len(got) != 0 {
		t.Fatalf("debts %v", got)
	}
}

// TestDamagedDebts: the file may end anywhere, have holes, or be partly overwritten: the other
// lines count.
func TestDamagedDebts(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	for _, pod := range []string{"a", "b", "c"} {
		begin(t, l, foreign(pod, 100))
	}
	whole, err := os.ReadFile(filepath.Join(dir, "cni.debts"))
	if err != nil {
		t.Fatal(err)
	}
	one := len(whole) / 3
	damaged := map[string]struct {
		data []byte
		want string
	}{
		"torn":           {whole[:len(whole)-10], "[a b]"},
		"torn in a name": {whole[:2*one+2], "[a b]"},
		"hole":           {slices.Concat(whole[:one], make([]byte, one), whole[2*one:]), "[a c]"},
		"zeros at end":   {slices.Concat(whole, make([]byte, 100)), "[a b c]"},
		"garbled record": {bytes.Replace(whole, []byte("+b {"), []byte("+b ["), 1), "[a b c]"},
		"garbled name":   {bytes.Replace(whole, []byte("+b {"), []byte("+/ {"), 1), "[a c]"},
		"binary":         {bytes.Repeat([]byte{0xff, '\n', 0, '+'}, 100), "[]"},
		"newer format":   {bytes.Replace(whole, []byte(`+b {"format":1`), []byte(`+b {"format":9`), 1), "[a b c]"},
		"twice":          {slices.Concat(whole, whole), "[a b c]"},
	}
	for name, tt := range damaged {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeTestFile(t, filepath.Join(dir, "cni.debts"), string(tt.data), 0o600)
			l := testLedger(t, dir)
			if got := fmt.Sprint(l.ids()); got != tt.want {
				t.Fatalf("debts %s, want %s", got, tt.want)
			}
			begin(t, l, foreign("new", 10))
			if l = testLedger(t, dir); !slices.Contains(l.ids(), "new") {
				t.Fatal("a line after damage is lost")
			}
			for _, id := range l.ids() {
				if err := l.clear(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			if got := testLedger(t, dir).ids(); len(got) != 0 {
				t.Fatalf("cleared, still %v", got)
			}
		})
	}
}

// TestReplacedDebt: if a pod has two lines, both are cleared.
func TestReplacedDebt(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	begin(t, l, foreign("a", 10))
	begin(t, l, foreign("b", 10))
	data, err := os.ReadFile(filepath.Join(dir, "cni.debts"))
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(dir, "cni.debts"), string(data)+string(data), 0o600)
	l = testLedger(t, dir)
	if err := l.clear(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(testLedger(t, dir).ids()); got != "[b]" {
		t.Fatalf("debts %s", got)
	}
}

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

func TestLedgerRewrites(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	begin(t, l, foreign("first", 10))
	const each = 100_000 // a third more in base64
	for i := range 40 {
		id := fmt.Sprint("p", i)
		begin(t, l, foreign(id, each))
		if i%10 != 0 {
			if err := l.clear(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	st, err := os.Stat(filepath.Join(dir, "cni.debts"))
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 3*rewriteAt {
		t.Fatalf("debts file has %d bytes", st.Size())
	}
	want := fmt.Sprint(l.ids())
	if got := fmt.Sprint(testLedger(t, dir).ids()); got != want || !strings.Contains(got, "first") {
		t.Fatalf("debts %s, want %s", got, want)
	}
	for _, id := range l.ids() {
		if err := l.clear(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "cni.debts")); err != nil || st.Size() != 0 {
		t.Fatalf("empty debts have %d bytes", st.Size())
	}
}

func TestLedgerConcurrently(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			id := fmt.Sprint("p", i)
			if err := l.begin(context.Background(), foreign(id, 1000)); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := l.clear(context.Background(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := testLedger(t, dir).ids(); len(got) != 25 {
		t.Fatalf("%d debts: %v", len(got), got)
	}
}

// TestLedgerGivenUp: a caller that gives up waiting for the disk leaves no debt.
func TestLedgerGivenUp(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.begin(ctx, foreign("a", 10))
	if err == nil {
		t.Skip("the disk was faster")
	}
	wantErr(t, err, context.Canceled)
	if got := l.ids(); len(got) != 0 {
		t.Fatalf("debts %v", got)
	}
}

// TestRecordDoesNotFit: without space for the record there is no ADD.
func TestRecordDoesNotFit(t *testing.T) {
	h, f := fakeHost(t)
	h.n.debts.book.file.Close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	h.n.debts.book.file = full
	_, err = h.n.Setup(t.Context(), h.pod("p1"))
	wantErr(t, err, errdefs.ErrResourceExhausted, "record network of pod p1")
	if f.calls("ADD") != 0 || len(h.n.Debts()) != 0 {
		t.Fatal("ADD without a record")
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
	var r record
	if err := json.Unmarshal(bytes.TrimSpace(rest), &r); err != nil {
		t.Fatal(err)
	}
	if string(r.Conf) != text || r.NetNS != p.NetNS {
		t.Fatalf("record %+v", r)
	}
	h.teardown(p)
}
