package imagecmd

import (
	"strings"
	"testing"
	"time"

	"github.com/cribox/cribox/server/admin"
)

// TestBars draws two pictures of a pull, two seconds apart.
func TestBars(t *testing.T) {
	now, drawn := time.Unix(0, 0), strings.Builder{}
	d := &display{to: &drawn, width: 100, told: map[string]bool{}, speed: map[string]*rate{}, now: func() time.Time { return now }}
	show := func(steps ...admin.Step) string {
		drawn.Reset()
		d.event(admin.Event{Pulls: []admin.Pull{{Steps: steps}}})
		return drawn.String()
	}
	if got := show(admin.Step{Name: "layer 1/2", Done: 0, Total: 100 << 20}); !strings.Contains(got, ".................... ") || strings.Contains(got, "\x1b[1A") {
		t.Errorf("at the beginning: %q", got)
	}
	now = now.Add(2 * time.Second)
	got := show(admin.Step{Name: "layer 1/2", Done: 50 << 20, Total: 100 << 20}, admin.Step{Name: "unpacking", Done: 5})
	for _, want := range []string{"\x1b[1A", "##########..........  50.0 MiB of 100.0 MiB  25.0 MiB/s  2s", "unpacking", "5 B"} {
		if !strings.Contains(got, want) {
			t.Errorf("half-way: %q, want %q", got, want)
		}
	}
	if got := show(admin.Step{Name: "layer 1/2", Done: 100 << 20, Total: 100 << 20, Finished: true}); !strings.Contains(got, "\x1b[2A") || !strings.Contains(got, "####################  100.0 MiB") {
		t.Errorf("at the end: %q", got)
	}
}

// TestLines: without a terminal there is one line for each finished step.
func TestLines(t *testing.T) {
	var out strings.Builder
	d := &display{to: &out, told: map[string]bool{}, speed: map[string]*rate{}, now: time.Now}
	for range 3 {
		d.event(admin.Event{Pulls: []admin.Pull{{Steps: []admin.Step{{Name: "layer 1/2", Done: 2048, Finished: true}, {Name: "layer 2/2", Done: 1}}}}})
	}
	if out.String() != "layer 1/2: 2.0 KiB\n" {
		t.Errorf("%q", out.String())
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 30: "5.0 GiB", 3 << 50: "3072.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
