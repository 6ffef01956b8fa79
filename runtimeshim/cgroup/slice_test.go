package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLedger plays what systemd and the kernel do to the cgroups of a slice, in files of that form.
// Each word is an event: begin, make, kill (the counter rises), gone (systemd removes it), end, and
// the kills that must be known of a scope.
func TestLedger(t *testing.T) {
	for name, script := range map[string]string{
		"gone at once":              "begin:a make:a kill:a gone:a a=1",
		"gone before it was seen":   "begin:a kill:a a=1",
		"no kill":                   "begin:a make:a gone:a a=0",
		"still there":               "begin:a make:a kill:a kill:a a=2 end:a gone:a begin:b make:b gone:b b=0",
		"kills before the first":    "make:x kill:x gone:x make:y kill:y begin:a make:a gone:a a=0",
		"the other lives":           "begin:a begin:b make:a make:b kill:b kill:a gone:a a=1 b=1 gone:b b=1",
		"both at once":              "begin:a begin:b make:a make:b kill:a kill:b gone:a gone:b a=1 end:a b=1",
		"one of two":                "begin:a begin:b make:a make:b kill:a gone:a a=1 end:a gone:b b=0",
		"asked twice":               "begin:a make:a kill:a gone:a a=1 a=1",
		"one after the other":       "begin:a make:a kill:a gone:a a=1 end:a begin:b make:b gone:b b=0 end:b begin:c make:c kill:c gone:c c=1",
		"a stranger":                "begin:a make:a make:x kill:x gone:x begin:b make:b gone:a a=0",
		"in the middle of a start":  "begin:a make:a begin:b kill:a gone:a a=1 end:a make:b kill:b gone:b b=1",
		"a failed start":            "begin:a end:a begin:b make:b kill:b gone:b b=1",
		"a new slice":               "begin:a make:a kill:a kill:a gone:a a=2 end:a reset begin:b make:b kill:b gone:b b=1",
		"several of one":            "begin:a make:a kill:a kill:a kill:a gone:a a=3",
		"known, then killed, gone":  "begin:a make:a kill:a a=1 kill:a gone:a a=2",
		"nobody has announced it":   "make:a kill:a gone:a a=0",
		"its end is told, it stays": "begin:a make:a kill:a a=1 end:a begin:b make:b gone:a gone:b b=0",
	} {
		t.Run(name, func(t *testing.T) {
			p := play{t: t, slice: t.TempDir(), ledger: newLedger(), kills: map[string]int{}}
			p.write(p.slice, 0)
			for _, word := range strings.Fields(script) {
				p.event(word)
			}
		})
	}
	if _, _, ok := place("/sys/fs/cgroup/kubepods/pod1/ctr/memory.events"); ok {
		t.Error("a cgroup without systemd is taken for a scope")
	}
}

type play struct {
	t      *testing.T
	slice  string
	ledger *Ledger
	total  int
	kills  map[string]int
}

func (p *play) event(word string) {
	if name, want, ok := strings.Cut(word, "="); ok {
		if got := fmt.Sprint(p.ledger.Kills(p.file(name))); got != want {
			p.t.Errorf("%s has %s kills, want %s", name, got, want)
		}
		return
	}
	what, name, _ := strings.Cut(word, ":")
	dir := filepath.Dir(p.file(name))
	switch what {
	case "begin":
		p.ledger.Begin(p.file(name))
	case "end":
		p.ledger.End(p.file(name), 0)
	case "make":
		p.write(dir, 0)
	case "kill":
		p.kills[name]++
		p.total++
		p.write(p.slice, p.total)
		if _, err := os.Stat(dir); err == nil {
			p.write(dir, p.kills[name])
		}
	case "gone":
		if err := os.RemoveAll(dir); err != nil {
			p.t.Fatal(err)
		}
	case "reset":
		p.total = 0
		p.write(p.slice, 0)
	}
}

func (p *play) file(name string) string {
	return filepath.Join(p.slice, "cribox-"+name+".scope", "memory.events")
}

func (p *play) write(dir string, kills int) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(fmt.Sprintf("oom 3\noom_kill %d\n", kills)), 0o600); err != nil {
		p.t.Fatal(err)
	}
}
