package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func testLedger(t *testing.T, dir string) *Ledger {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "cni"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), filepath.Join(dir, "cni.debts"), filepath.Join(dir, "cni"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func foreign(pod string, bytes int) Record {
	return Record{Format: Format, Pod: pod, Network: "x", Conf: make([]byte, bytes), Args: [][2]string{{"K8S_POD_NAME", pod}}}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func begin(t *testing.T, l *Ledger, r Record) {
	t.Helper()
	if err := l.Begin(t.Context(), r); err != nil {
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
	if err := l.Clear(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	l = testLedger(t, dir)
	if got := fmt.Sprint(l.IDs()); got != "[b c]" {
		t.Fatalf("debts %s", got)
	}
	if d, _ := l.Get("c"); d.Args[0][1] != "c" || len(d.Conf) != 10 {
		t.Fatalf("record %+v", d)
	}
	for _, id := range l.IDs() {
		if err := l.Clear(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if got := testLedger(t, dir).IDs(); len(got) != 0 {
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
			write(t, filepath.Join(dir, "cni.debts"), string(tt.data))
			l := testLedger(t, dir)
			if got := fmt.Sprint(l.IDs()); got != tt.want {
				t.Fatalf("debts %s, want %s", got, tt.want)
			}
			begin(t, l, foreign("new", 10))
			if l = testLedger(t, dir); !slices.Contains(l.IDs(), "new") {
				t.Fatal("a line after damage is lost")
			}
			for _, id := range l.IDs() {
				if err := l.Clear(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			if got := testLedger(t, dir).IDs(); len(got) != 0 {
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
	write(t, filepath.Join(dir, "cni.debts"), string(data)+string(data))
	l = testLedger(t, dir)
	if err := l.Clear(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(testLedger(t, dir).IDs()); got != "[b]" {
		t.Fatalf("debts %s", got)
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
			if err := l.Clear(t.Context(), id); err != nil {
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
	want := fmt.Sprint(l.IDs())
	if got := fmt.Sprint(testLedger(t, dir).IDs()); got != want || !strings.Contains(got, "first") {
		t.Fatalf("debts %s, want %s", got, want)
	}
	for _, id := range l.IDs() {
		if err := l.Clear(t.Context(), id); err != nil {
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
			if err := l.Begin(context.Background(), foreign(id, 1000)); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := l.Clear(context.Background(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := testLedger(t, dir).IDs(); len(got) != 25 {
		t.Fatalf("%d debts: %v", len(got), got)
	}
}

// TestLedgerGivenUp: a caller that gives up waiting for the disk leaves no debt.
func TestLedgerGivenUp(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.Begin(ctx, foreign("a", 10))
	if err == nil {
		t.Skip("the disk was faster")
	}
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if got := l.IDs(); len(got) != 0 {
		t.Fatalf("debts %v", got)
	}
}

// TestRecordDoesNotFit: without space for the record there is no debt.
func TestRecordDoesNotFit(t *testing.T) {
	l := testLedger(t, t.TempDir())
	l.journal.file.Close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.journal.file = full
	err = l.Begin(t.Context(), foreign("p1", 10))
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "record network of pod p1") || len(l.IDs()) != 0 {
		t.Fatalf("%v, debts %v", err, l.IDs())
	}
}

// TestPanicCostsOneDebt: the caller of a write that panics gets an error, and the next write
// succeeds.
func TestPanicCostsOneDebt(t *testing.T) {
	j, _, err := openJournal(t.Context(), filepath.Join(t.TempDir(), "debts"))
	if err != nil {
		t.Fatal(err)
	}
	// It has no line, which causes a panic.
	bad := &entry{text: []byte("\n+none {}\n"), done: make(chan error, 1)}
	j.put(bad)
	if err := <-bad.done; !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("who waits is told %v", err)
	}
	l, err := j.add(t.Context(), "pod", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if l.at != 1 {
		t.Errorf("the next debt is at %d", l.at)
	}
}
