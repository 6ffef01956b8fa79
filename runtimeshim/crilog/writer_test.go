package crilog

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shared is the buffer of all Writers; there is one Writer at a time.
var shared = Buffer{Raw: make([]byte, 1<<20), Out: make([]byte, 1<<20)}

// container is a task whose output is written to its log by Writers that are killed.
type container struct {
	t       *testing.T
	d       *disk
	fifo    [2][]string // what it prints, in portions
	printed [2]string   // all of that
	record  *memory
	spool   [2]*memory
	logs    []*memory // the last one is at the log's path
	limit   int64
	rotate  map[int]bool // numbers of the portions before which the log is rotated
	portion int
	memory  int // buffer size of a Writer
}

func newContainer(t *testing.T, d *disk, limit int64, rotate []int, stdout, stderr []string) *container {
	c := &container{t: t, d: d, fifo: [2][]string{stdout, stderr}, limit: limit, rotate: map[int]bool{}, memory: 80 << 10,
		record: &memory{d: d}, spool: [2]*memory{{d: d}, {d: d}}, logs: []*memory{{d: d}}}
	for i := range c.fifo {
		c.printed[i] = strings.Join(c.fifo[i], "")
	}
	for _, n := range rotate {
		c.rotate[n] = true
	}
	return c
}

// fill acts like splice: a portion moves from the FIFO to the spool atomically.
func (c *container) fill(i int, s *Spool) int {
	c.d.op(nil)
	text := c.fifo[i][0]
	c.fifo[i] = c.fifo[i][1:]
	c.portion++
	c.spool[i].data = append(c.spool[i].data, text...)
	s.Grow(int64(len(text)))
	return len(text)
}

func (c *container) log(n int) Log { return Log{File: c.logs[n], ID: FileID{1, uint64(n + 1)}} }

// carry runs one Writer as the logger does, from opening the files until everything is in the logs
// or the Writer is killed.
func (c *container) carry() (alive bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
		}
	}()
	must := func(err error) {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	w, err := NewWriter(Owner{
		Now: func() time.Time { return criAt }, Removed: func(int64) error { return nil }, Full: func() {},
		Lost: func(err error) { c.t.Error(err) },
	}, c.limit, c.record)
	must(err)
	if w.Done() {
		return true
	}
	var spools [2]*Spool
	for i := range spools {
		spools[i], err = OpenSpool(c.spool[i])
		must(err)
	}
	w.TakeSpools(spools)
	last := len(c.logs) - 1
	// The log was renamed, but not reopened: do what place.open does.
	if was := int(w.LogID().Ino) - 1; was >= 0 && was < last {
		must(w.OpenLog(c.log(was)))
		must(w.Resume())
		must(w.Adopt(c.log(last)))
	} else {
		must(w.OpenLog(c.log(last)))
	}
	must(w.Resume())
	buf := Buffer{Raw: shared.Raw[:c.memory], Out: shared.Out[:0:c.memory]}
	commit := func(i int) error { return w.Commit(i, false, buf) }
	for len(c.fifo[0])+len(c.fifo[1]) > 0 {
		i := c.portion % 2
		if len(c.fifo[i]) == 0 {
			i = 1 - i
		}
		if c.rotate[c.portion] {
			delete(c.rotate, c.portion)
			must(w.Leave(commit))
			c.logs = append(c.logs, &memory{d: c.d})
			must(w.Switch(c.log(len(c.logs) - 1)))
		}
		c.fill(i, spools[i])
		must(commit(i))
		must(w.Compact(i))
	}
	for i := range spools {
		must(w.Commit(i, true, buf))
		must(w.Compact(i))
	}
	must(w.Finish())
	return true
}

var noticeLine = regexp.MustCompile(`(?m)^\S+ stderr F \[(\d+) bytes of output are left out here: [^\n]*\n`)

// check reads the logs: every line is there exactly once, and every missing byte is counted in a
// notice.
func (c *container) check(what string) {
	c.t.Helper()
	var all []byte
	for _, l := range c.logs {
		if c.limit > 0 && int64(len(l.data)) > c.limit {
			c.t.Errorf("%s: a log has %d bytes, its limit is %d", what, len(l.data), c.limit)
		}
		all = append(all, l.data...)
	}
	missing := 0
	for _, m := range noticeLine.FindAllSubmatch(all, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		missing += n
	}
	got, err := Parse(noticeLine.ReplaceAll(all, nil))
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	for i, want := range c.printed {
		if c.limit == 0 && string(got[i]) != want {
			c.t.Fatalf("%s: stream %d has %d bytes, want %d: lines are lost or doubled", what, i, len(got[i]), len(want))
		}
	}
	if sum := len(got[0]) + len(got[1]) + missing; sum != len(c.printed[0])+len(c.printed[1]) {
		c.t.Fatalf("%s: %d bytes are in the logs and %d are counted, want %d", what, len(got[0])+len(got[1]), missing, len(c.printed[0])+len(c.printed[1]))
	}
	if c.limit > 0 {
		for i := range got {
			wantSubsequence(c.t, what, string(got[i]), c.printed[i])
		}
	}
}

// TestManyRotationsThatFail: a log that is left again and again, because the logger is killed before
// the next one is there, stays below its limit, and what is missing is counted once.
func TestManyRotationsThatFail(t *testing.T) {
	d := &disk{}
	width, rounds := 100, 6
	var portions []string
	for i := range rounds {
		portions = append(portions, lines(i*1000, 1000, width))
	}
	c := newContainer(t, d, 2*int64(MaxLine), nil, portions, nil)
	var spool *Spool
	for range rounds {
		w, err := NewWriter(Owner{Now: func() time.Time { return criAt }, Removed: func(int64) error { return nil }, Full: func() {},
			Lost: func(err error) { t.Error(err) }, Step: func(string) {}}, c.limit, c.record)
		if err == nil {
			spool, err = OpenSpool(c.spool[0])
		}
		if err != nil {
			t.Fatal(err)
		}
		w.TakeSpools([2]*Spool{spool, nil})
		buf := Buffer{Raw: shared.Raw[:c.memory], Out: shared.Out[:0:c.memory]}
		for _, do := range []func() error{
			func() error { return w.OpenLog(c.log(0)) }, w.Resume,
			func() error { c.fill(0, spool); return w.Commit(0, false, buf) },
			func() error { return w.Leave(func(i int) error { return w.Commit(i, false, buf) }) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		if len(c.fifo[0]) == 0 {
			if err := w.Finish(); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.check("left six times")
	if n := len(noticeLine.FindAll(c.logs[0].data, -1)); n != 2 {
		t.Errorf("%d notices, want one of the first rotation and one of the end", n)
	}
}

// wantSubsequence checks that the lines of got are lines of printed, in order, none twice.
func wantSubsequence(t *testing.T, what, got, printed string) {
	t.Helper()
	rest := strings.SplitAfter(printed, "\n")
	for _, line := range strings.SplitAfter(got, "\n") {
		for len(rest) > 0 && rest[0] != line {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			t.Fatalf("%s: %.60q is there twice, or was never printed", what, line)
		}
		rest = rest[1:]
	}
}

// lines returns numbered lines.
func lines(from, n, width int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "%d %s\n", from+i, strings.Repeat("x", width))
	}
	return b.String()
}

// stories are outputs of containers, and what happens to the log meanwhile.
var stories = map[string]func(t *testing.T, d *disk) *container{
	"lines": func(t *testing.T, d *disk) *container {
		return newContainer(t, d, 0, nil, []string{"a\nb", "c\n", "\n", "no end"}, []string{"1\n", "2", "3\n4\n"})
	},
	"nothing": func(t *testing.T, d *disk) *container { return newContainer(t, d, 0, nil, nil, nil) },
	"a spool that is emptied": func(t *testing.T, d *disk) *container {
		// The second portion is longer.
		return newContainer(t, d, 0, nil, []string{lines(0, 10, 7000), lines(10, 11, 7000)}, nil)
	},
	"a spool that gets a hole": func(t *testing.T, d *disk) *container {
		line := strings.Repeat("y", 24*MaxPiece)
		var portions []string
		for range 1 + PunchAt/len(line) { // no portion ends at the end of a line
			portions = append(portions, line[:100]+"\n"+line[100:])
		}
		c := newContainer(t, d, 0, nil, append(portions, "\nend"), nil)
		c.memory = 1 << 20
		return c
	},
	"rotations": func(t *testing.T, d *disk) *container {
		return newContainer(t, d, 0, []int{1, 2, 5}, []string{"a\nb", "c\n", "d\n", "e"}, []string{"1\n", "2", "3\n4\n"})
	},
	"a limit": func(t *testing.T, d *disk) *container {
		return newContainer(t, d, 40<<10, []int{5}, []string{lines(0, 30, 500), lines(30, 20, 5000), lines(70, 9, 500), lines(80, 30, 500)},
			[]string{lines(0, 8, 500), lines(8, 9, 500)})
	},
}

// TestKilledAtEveryOperation kills the Writer before, or in the middle of, every file operation,
// and continues with a new one. The logs must be the same as without a kill.
func TestKilledAtEveryOperation(t *testing.T) {
	for name, story := range stories {
		t.Run(name, func(t *testing.T) {
			d := &disk{}
			whole := story(t, d)
			if !whole.carry() {
				t.Fatal("it does not end")
			}
			whole.check("undisturbed")
			ops := d.ops
			t.Logf("%d operations", ops)
			for at := 1; at <= ops; at++ {
				for _, half := range []bool{false, true} {
					killAndGoOn(t, story, at, 0, half)
				}
			}
		})
	}
}

// TestKilledTwice also kills the second Writer at every operation.
func TestKilledTwice(t *testing.T) {
	for _, name := range []string{"lines", "rotations", "a spool that is emptied"} {
		t.Run(name, func(t *testing.T) {
			d := &disk{}
			stories[name](t, d).carry()
			for at := 1; at <= d.ops; at++ {
				for again := 1; killAndGoOn(t, stories[name], at, again, true); again++ {
				}
			}
		})
	}
}

// killAndGoOn kills the first Writer at operation at, and the second at operation again, unless
// that is 0. It reports whether the last of these kills has happened.
func killAndGoOn(t *testing.T, story func(*testing.T, *disk) *container, at, again int, half bool) bool {
	t.Helper()
	d := &disk{killAt: at, half: half}
	c := story(t, d)
	alive := c.carry()
	if again > 0 {
		d.ops, d.killAt = 0, again
		alive = c.carry()
	}
	d.killAt = 0
	if !alive && !c.carry() {
		t.Fatal("it does not end")
	}
	c.check(fmt.Sprintf("killed at operation %d, then %d, half done %v", at, again, half))
	return !alive
}

// TestRotationMovesPartialLine: a line that fits only partly in the old log is in the next log, whole, and
// nowhere else.
func TestRotationMovesPartialLine(t *testing.T) {
	d := &disk{}
	c := newContainer(t, d, 0, nil, []string{"a\nb\n"}, nil)
	full := &fullFile{memory: c.logs[0]}
	w, err := NewWriter(Owner{Now: func() time.Time { return criAt }}, 0, c.record)
	if err != nil {
		t.Fatal(err)
	}
	spool, err := OpenSpool(c.spool[0])
	if err != nil {
		t.Fatal(err)
	}
	w.TakeSpools([2]*Spool{spool})
	if err := w.OpenLog(Log{File: full, ID: FileID{1, 1}}); err != nil {
		t.Fatal(err)
	}
	c.fill(0, spool)
	commit := func(i int) error {
		return w.Commit(i, false, Buffer{Raw: make([]byte, 1<<10), Out: make([]byte, 0, MaxLine)})
	}
	if commit(0) == nil || w.Leave(commit) != nil || len(full.data) != 0 {
		t.Fatalf("what did not fit is still in the old log: %q", full.data)
	}
	next := &memory{d: d}
	if err := w.Switch(Log{File: next, ID: FileID{1, 2}}); err != nil {
		t.Fatal(err)
	}
	if err := commit(0); err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(next.data); err != nil || string(got[0]) != "a\nb\n" {
		t.Errorf("the next log has %q, %v", got[0], err)
	}
}

// fullFile accepts half of what is appended.
type fullFile struct{ *memory }

func (f *fullFile) Append(b []byte) error {
	f.data = append(f.data, b[:len(b)/2]...)
	return fmt.Errorf("disk is full")
}
