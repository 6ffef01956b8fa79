package stats

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/cgroup"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// Figures reads what pods and containers use. It changes no record.
type Figures struct {
	layout layout.Layout
	table  *table.Table
	host   spec.Host
	layers layers
	rates  rates
}

// New returns the figures of what a table holds.
func New(l layout.Layout, t *table.Table, host spec.Host) *Figures {
	return &Figures{layout: l, table: t, host: host}
}

// Stats is what a container uses at one moment. A figure that cannot be read is nil.
type Stats struct {
	table.Container
	cgroup.Usage
	NanoCores *uint64 // processor nanoseconds a second since an earlier question; nil at the first
	Layer     Layer
}

// PodStats is what a pod uses at one moment. A figure that cannot be read is nil.
type PodStats struct {
	table.Pod
	cgroup.Usage
	NanoCores    *uint64
	Threads      *uint64     // of all processes: what the kernel limits, and what the kubelet evicts a pod for
	Interfaces   []Interface // the default one first, the loopback last
	InterfacesAt time.Time
	Containers   []Stats // those that run
}

// What a cgroup uses, by names that other rooms can say.
type (
	Usage    = cgroup.Usage
	Pressure = cgroup.Pressure
	Stall    = cgroup.Stall
)

// A question for figures fails when we lack the descriptors or the memory to read them: to a
// kubelet, which asks again, a figure that is missing is zero, and what is not in a list has ended.

// Stats returns what a container uses, straight from its cgroup; of one that does not run, its
// writable layer (CRI ContainerStats).
func (f *Figures) Stats(c table.Container) (Stats, error) {
	s := f.read(c)
	if err := starved(s); err != nil {
		return Stats{}, err
	}
	s.Layer = f.layers.measure(f.layout.Upper(c.ID))[0]
	return s, nil
}

// ListStats is Stats of those that run, in their order. One that ends meanwhile is left out (CRI
// ListContainerStats).
func (f *Figures) ListStats(of []table.Container) ([]Stats, error) {
	of = running(of)
	all := make([]Stats, len(of))
	if err := each(len(of), func(i int) { all[i] = f.read(of[i]) }); err != nil {
		return nil, err
	}
	if err := starved(all...); err != nil {
		return nil, err
	}
	all = present(all)
	f.addLayers(all)
	return all, nil
}

// PodStats returns what a pod and its containers use; of one in which nothing runs, nothing (CRI
// PodSandboxStats).
func (f *Figures) PodStats(p table.Pod) (PodStats, error) {
	all, err := f.podStats([]table.Pod{p})
	if err != nil {
		return PodStats{}, err
	}
	return all[0], nil
}

// ListPodStats is PodStats of the pods in which something runs, in their order (CRI
// ListPodSandboxStats).
func (f *Figures) ListPodStats(of []table.Pod) ([]PodStats, error) {
	return f.podStats(live(of))
}

func (f *Figures) podStats(of []table.Pod) ([]PodStats, error) {
	all := make([]PodStats, len(of))
	if err := each(len(of), func(i int) { all[i] = f.readPod(of[i]) }); err != nil {
		return nil, err
	}
	var containers []Stats
	for i := range all {
		if err := errors.Join(starved(all[i].Containers...), starved(Stats{Usage: all[i].Usage})); err != nil {
			return nil, err
		}
		containers = append(containers, all[i].Containers...)
	}
	f.addLayers(containers)
	for i := range all {
		n := len(all[i].Containers)
		all[i].Containers, containers = containers[:n:n], containers[n:]
	}
	return all, nil
}

func (f *Figures) readPod(p table.Pod) PodStats {
	s := PodStats{Pod: p}
	if !lives(p) {
		return s
	}
	s.Interfaces, s.InterfacesAt = interfacesOf(p), time.Now()
	for _, c := range running(f.table.ContainersOf(p)) {
		s.Containers = append(s.Containers, f.read(c))
	}
	s.Containers = present(s.Containers)
	if own := ownCgroup(p); own != "" {
		s.Usage, s.Threads = f.cgroups().PodUsage(own)
	} else {
		s.Usage, s.Threads = f.addUp(p, s.Containers)
	}
	s.NanoCores = f.rates.nanoCores(p.ID, s.At, s.CPU)
	return s
}

// addUp returns what pause and containers use together: the figures of a pod whose owner made no
// cgroup for it. They are less by what a container has used as soon as it has ended.
func (f *Figures) addUp(p table.Pod, containers []Stats) (cgroup.Usage, *uint64) {
	pause, its := f.cgroups().PodUsage(p.Cgroup)
	usage, threads := []cgroup.Usage{pause}, []*uint64{its}
	for _, c := range containers {
		usage, threads = append(usage, c.Usage), append(threads, f.cgroups().Threads(c.Cgroup))
	}
	return cgroup.Sum(usage...), cgroup.SumOf(threads...)
}

// ownCgroup returns the cgroup that the kubelet made for the pod, in which all of it lies; "" when
// it made none.
func ownCgroup(p table.Pod) string {
	if p.Config.GetLinux().GetCgroupParent() == "" || p.Cgroup == "" {
		return ""
	}
	return filepath.Dir(p.Cgroup)
}

func (f *Figures) cgroups() cgroup.Tree {
	return cgroup.Tree{Root: cgroup.Mount, V2: f.host.CgroupV2}
}

func (f *Figures) read(c table.Container) Stats {
	s := Stats{Container: c}
	if c.Running() && c.Cgroup != "" {
		s.Usage = f.cgroups().Usage(c.Cgroup)
		s.NanoCores = f.rates.nanoCores(c.ID, s.At, s.CPU)
	}
	return s
}

func (f *Figures) addLayers(all []Stats) {
	dirs := make([]string, len(all))
	for i, s := range all {
		dirs[i] = f.layout.Upper(s.ID)
	}
	for i, l := range f.layers.measure(dirs...) {
		all[i].Layer = l
	}
}

// Filesystem is where images and writable layers lie, and what CRI calls its mountpoint.
func (f *Figures) Filesystem() string { return f.layout.Root }

func running(all []table.Container) []table.Container {
	var out []table.Container
	for _, c := range all {
		if c.Running() {
			out = append(out, c)
		}
	}
	return out
}

// live returns the pods in which something runs. The cgroup of one that is no more may be that of
// the pod which took its place.
func live(all []table.Pod) []table.Pod {
	var out []table.Pod
	for _, p := range all {
		if lives(p) {
			out = append(out, p)
		}
	}
	return out
}

func lives(p table.Pod) bool {
	if p.PausePID != 0 {
		return true
	}
	for _, c := range p.Containers {
		if (table.Container{Container: c}).Running() {
			return true
		}
	}
	return false
}

// present leaves out what had ended before it was looked at.
func present(all []Stats) []Stats {
	out := all[:0]
	for _, s := range all {
		if !s.Gone() {
			out = append(out, s)
		}
	}
	return out
}

// starved returns the error of class ErrResourceExhausted with which figures could not be read, nil
// for none.
func starved(all ...Stats) error {
	for _, s := range all {
		if errors.Is(s.Err, errdefs.ErrResourceExhausted) {
			return fmt.Errorf("usage of what runs: %w", s.Err)
		}
	}
	return nil
}

// each calls act with 0 to n-1, on a few processors at once: most of the time goes into the
// kernel's adding up. Its error is that of a panic.
func each(n int, act func(int)) error {
	var next atomic.Int64
	var all errgroup.Group
	for range min(n, runtime.GOMAXPROCS(0), 8) {
		all.Go(func() error {
			return guard.Call(context.Background(), "reading figures", func() error {
				for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
					act(int(i))
				}
				return nil
			})
		})
	}
	return all.Wait()
}

const (
	// rateWindow is the least time over which a rate is told: what is asked for by several clients
	// keeps its meaning.
	rateWindow = time.Second
	// forgetAfter is how long what nobody asks about is remembered.
	forgetAfter = 10 * time.Minute
)

// rates remembers the processor time of containers and pods.
type rates struct {
	mu  sync.Mutex // guards what follows
	all map[string]*rate
}

type rate struct{ before, last sample }

type sample struct {
	at  time.Time // zero: there is none
	cpu uint64
}

// nanoCores returns how fast cpu has grown since a sample that is at least rateWindow old; nil
// without one.
func (r *rates) nanoCores(id string, at time.Time, cpu *uint64) *uint64 {
	if cpu == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	one, known := r.all[id]
	if !known {
		r.forget(at)
		one = &rate{}
		r.all[id] = one
	}
	return one.add(sample{at, *cpu})
}

func (r *rate) add(now sample) *uint64 {
	// taken before the last one, by somebody who came to add it later
	if now.cpu < r.last.cpu && now.at.Sub(r.last.at) < rateWindow {
		now = r.last
	}
	// a cgroup that was made anew, or nobody has asked for long
	if now.cpu < r.last.cpu || now.at.Sub(r.last.at) > forgetAfter {
		*r = rate{last: now}
		return nil
	}
	since := r.before
	if now.at.Sub(r.last.at) >= rateWindow {
		since = r.last
		r.before, r.last = r.last, now
	}
	if since.at.IsZero() {
		return nil
	}
	return new(uint64(float64(now.cpu-since.cpu) / now.at.Sub(since.at).Seconds()))
}

// forget drops what nobody has asked about for long. Called with mu held.
func (r *rates) forget(now time.Time) {
	if r.all == nil {
		r.all = map[string]*rate{}
	}
	for id, one := range r.all {
		if now.Sub(one.last.at) > forgetAfter {
			delete(r.all, id)
		}
	}
}
