package podcmd

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/adminclient"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/server/admin"
)

// topEvery is the time between two pictures, over which rates are told.
const topEvery = time.Second

// rates is what a container or a pod uses.
type rates struct {
	admin.Use
	CPUShare     float64 `json:"cores"`     // processors
	ReadRate     float64 `json:"readRate"`  // bytes a second
	WriteRate    float64 `json:"writeRate"` // bytes a second
	isPod        bool
	ofContainers []rates
}

// Top shows what pods and containers use: again and again on a terminal, once elsewhere.
func Top(ctx context.Context, c config.Config, o cli.PodOptions, out io.Writer) error {
	client := adminclient.New(c)
	before, err := sample(ctx, client)
	if err != nil {
		return err
	}
	screen := newScreen(o, out)
	defer screen.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys := screen.keys(ctx)
	by := byte('c')
	again := time.NewTicker(topEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case key := <-keys:
			if key == 'q' {
				return nil
			}
			by = key
			continue
		case <-again.C:
		}
		now, err := sample(ctx, client)
		if err != nil {
			return err
		}
		pods := between(before, now, by)
		before = now
		if o.JSON {
			return printJSON(out, containersOf(pods))
		}
		if err := screen.draw(pods); err != nil || !screen.live {
			return err
		}
	}
}

func sample(ctx context.Context, c *adminclient.Client) (map[string]admin.Use, error) {
	var all []admin.Use
	if err := c.Get(ctx, "/v1/top", &all); err != nil {
		return nil, err
	}
	byID := map[string]admin.Use{}
	for _, u := range all {
		byID[u.ID] = u
	}
	return byID, nil
}

// between returns the pods, each with its containers, sorted by processor time, memory or bytes of
// disks ('c', 'm', 'i').
func between(before, now map[string]admin.Use, by byte) []rates {
	pods := map[string]*rates{}
	for id, u := range now {
		one := rates{Use: u}
		if old, ok := before[id]; ok {
			seconds := u.At.Sub(old.At).Seconds()
			one.CPUShare = perSecond(old.CPU, u.CPU, seconds) / 1e9
			one.ReadRate, one.WriteRate = perSecond(old.Read, u.Read, seconds), perSecond(old.Written, u.Written, seconds)
		}
		p := pods[u.PodID]
		if p == nil {
			p = &rates{Use: admin.Use{Pod: u.Pod, PodID: u.PodID, ID: u.PodID}, isPod: true}
			pods[u.PodID] = p
		}
		p.add(one)
	}
	all := make([]rates, 0, len(pods))
	for _, p := range pods {
		p.ofContainers = sorted(p.ofContainers, by)
		all = append(all, *p)
	}
	return sorted(all, by)
}

func (r *rates) add(c rates) {
	r.CPUShare += c.CPUShare
	r.Memory += c.Memory
	r.ReadRate += c.ReadRate
	r.WriteRate += c.WriteRate
	r.CPUStall, r.MemoryStall = most(r.CPUStall, c.CPUStall), most(r.MemoryStall, c.MemoryStall)
	r.IOStall = most(r.IOStall, c.IOStall)
	r.ofContainers = append(r.ofContainers, c)
}

func most(a, b *float64) *float64 {
	if a == nil || b != nil && *b > *a {
		return b
	}
	return a
}

// perSecond is 0 for a number that was counted anew.
func perSecond(before, now uint64, seconds float64) float64 {
	if now < before || seconds <= 0 {
		return 0
	}
	return float64(now-before) / seconds
}

func sorted(all []rates, by byte) []rates {
	weight := func(r rates) float64 {
		switch by {
		case 'm':
			return float64(r.Memory)
		case 'i':
			return r.ReadRate + r.WriteRate
		}
		return r.CPUShare
	}
	slices.SortFunc(all, func(a, b rates) int {
		return cmp.Or(cmp.Compare(weight(b), weight(a)), cmp.Compare(a.Pod+a.Container, b.Pod+b.Container),
			cmp.Compare(a.ID, b.ID))
	})
	return all
}

func containersOf(pods []rates) []rates {
	all := []rates{}
	for _, p := range pods {
		all = append(all, p.ofContainers...)
	}
	return all
}

// table writes the pods, their containers below them.
func table(out io.Writer, pods []rates) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POD, CONTAINER\tID\tCPU\tMEMORY\tREAD/s\tWRITE/s\tSTALLED CPU\tMEMORY\tIO")
	for _, p := range pods {
		row(t, p, p.Pod)
		for _, c := range p.ofContainers {
			row(t, c, "  "+c.Container)
		}
	}
	return t.Flush()
}

func row(t io.Writer, r rates, name string) {
	fmt.Fprintf(t, "%s\t%s\t%.2f\t%s\t%s\t%s\t%s\t%s\t%s\n", name, short(r.ID), r.CPUShare, size(float64(r.Memory)),
		size(r.ReadRate), size(r.WriteRate), percent(r.CPUStall), percent(r.MemoryStall), percent(r.IOStall))
}

func percent(p *float64) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", *p)
}

func size(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1024 {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", n), ".0") + " " + unit
		}
		n /= 1024
	}
	return fmt.Sprintf("%.1f TiB", n)
}

// screen is where the table is shown: a terminal that is drawn again and again, or anything else.
type screen struct {
	out  io.Writer
	live bool
	in   *os.File // a terminal that sends keys at once, or nil
	undo func()
}

func newScreen(o cli.PodOptions, out io.Writer) *screen {
	s := &screen{out: out, undo: func() {}}
	f, ok := out.(*os.File)
	if !ok || o.Once || o.JSON || rowsOf(f) == 0 {
		return s
	}
	s.live = true
	if in, ok := o.In.(*os.File); ok {
		if undo, err := withoutEcho(in); err == nil {
			s.in, s.undo = in, undo
		}
	}
	_, _ = io.WriteString(out, "\x1b[?1049h") // another screen, which the last one outlives
	return s
}

func (s *screen) close() {
	if s.live {
		_, _ = io.WriteString(s.out, "\x1b[?1049l") // to a terminal that may be gone
	}
	s.undo()
}

// keys returns the keys that mean something.
func (s *screen) keys(ctx context.Context) <-chan byte {
	pressed := make(chan byte)
	if s.in == nil {
		return pressed
	}
	go func() { // ends with the process at the latest: nothing can interrupt the read of a terminal
		b := make([]byte, 1)
		for {
			if n, err := s.in.Read(b); n == 0 || err != nil {
				return
			}
			if !strings.ContainsRune("cmiq", rune(b[0])) {
				continue
			}
			select {
			case pressed <- b[0]:
			case <-ctx.Done():
				return
			}
		}
	}()
	return pressed
}

func (s *screen) draw(pods []rates) error {
	if !s.live {
		return table(s.out, pods)
	}
	var b strings.Builder
	if err := table(&b, pods); err != nil {
		return err
	}
	f := s.out.(*os.File)
	rows, columns := rowsOf(f), columnsOf(f)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	lines = append(lines[:min(len(lines), max(rows-2, 1))], "q: end, sort by c: CPU, m: memory, i: disks")
	var picture strings.Builder
	picture.WriteString("\x1b[H")
	for _, line := range lines {
		fmt.Fprintf(&picture, "%s\x1b[K\r\n", line[:min(len(line), columns)])
	}
	picture.WriteString("\x1b[J")
	_, err := io.WriteString(s.out, picture.String())
	return err
}
