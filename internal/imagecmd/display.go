package imagecmd

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/server/admin"
)

// display shows how far a pull or an archive is: on a terminal a bar for each layer, elsewhere a
// line for each part that is finished. With --json it shows nothing.
type display struct {
	to    io.Writer
	width int // of the terminal; 0 for none
	drawn int // lines that are on the terminal
	told  map[string]bool
	speed map[string]*rate
	now   func() time.Time
}

// rate is how fast a step has been of late.
type rate struct {
	at      time.Time
	done    int64
	perUnit float64 // bytes a second
}

func newDisplay(o cli.ImageOptions) *display {
	d := &display{to: o.Err, told: map[string]bool{}, speed: map[string]*rate{}, now: time.Now}
	if f, ok := o.Err.(*os.File); ok {
		d.width = terminalWidth(f)
	}
	if o.JSON {
		d.to, d.width = io.Discard, 0
	}
	return d
}

func isTerminal(f *os.File) bool { return terminalWidth(f) > 0 }

// terminalWidth returns the columns of a terminal, 0 if the file is none.
func terminalWidth(f *os.File) int {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return max(int(w.Col), 40)
}

// event shows one line of the daemon's answer.
func (d *display) event(e admin.Event) {
	steps := e.Steps
	for _, p := range e.Pulls {
		steps = append(steps, p.Steps...)
	}
	if e.Received > 0 {
		steps = append(steps, admin.Step{Name: "archive", Done: e.Received})
	}
	if d.width == 0 {
		d.lines(steps)
		return
	}
	d.bars(steps)
}

// lines prints the steps that have finished since the last time.
func (d *display) lines(steps []admin.Step) {
	for _, s := range steps {
		if s.Finished && !d.told[s.Name] {
			d.told[s.Name] = true
			fmt.Fprintf(d.to, "%s: %s\n", s.Name, size(s.Done))
		}
	}
}

// bars draws all steps over those that were drawn before.
func (d *display) bars(steps []admin.Step) {
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", d.drawn)
	}
	for _, s := range steps {
		fmt.Fprintf(&b, "\r%s\x1b[K\n", clip(d.bar(s), d.width-1))
	}
	d.drawn = max(d.drawn, len(steps))
	_, _ = io.WriteString(d.to, b.String()) // a terminal that is gone
}

const barCells = 20

// bar is one step: its name, the part that is done, bytes, speed and the time that is left.
func (d *display) bar(s admin.Step) string {
	text := fmt.Sprintf("%-32s", clip(s.Name, 32))
	if s.Finished {
		return text + " " + strings.Repeat("#", barCells) + "  " + size(s.Done)
	}
	perSecond := d.perSecond(s)
	if s.Total == 0 {
		return fmt.Sprintf("%s %s  %s  %s/s", text, strings.Repeat("-", barCells), size(s.Done), size(int64(perSecond)))
	}
	full := int(int64(barCells) * min(s.Done, s.Total) / s.Total)
	left := ""
	if perSecond > 0 {
		left = "  " + (time.Duration(float64(s.Total-s.Done)/perSecond) * time.Second).Round(time.Second).String()
	}
	return fmt.Sprintf("%s %s%s  %s of %s  %s/s%s", text, strings.Repeat("#", full), strings.Repeat(".", barCells-full),
		size(s.Done), size(s.Total), size(int64(perSecond)), left)
}

// perSecond is the speed of a step, smoothed over some seconds.
func (d *display) perSecond(s admin.Step) float64 {
	now, r := d.now(), d.speed[s.Name]
	if r == nil {
		d.speed[s.Name] = &rate{at: now, done: s.Done}
		return 0
	}
	passed := now.Sub(r.at).Seconds()
	if passed <= 0 {
		return r.perUnit
	}
	latest := float64(s.Done-r.done) / passed
	if r.perUnit == 0 {
		r.perUnit = latest
	}
	weight := min(passed/3, 1)
	r.perUnit += (latest - r.perUnit) * weight
	r.at, r.done = now, s.Done
	return r.perUnit
}

// end leaves the last picture.
func (d *display) end() { d.drawn = 0 }

// clear takes the last picture away.
func (d *display) clear() {
	if d.drawn > 0 {
		_, _ = fmt.Fprintf(d.to, "\x1b[%dA\r\x1b[J", d.drawn) // a terminal that is gone
	}
	d.drawn = 0
}

func clip(text string, width int) string {
	if len(text) <= width {
		return text
	}
	return text[:width]
}
