package stats

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/cgroup"
	"github.com/cribox/cribox/sandbox/table"
)

// Metrics is all that is counted of a container.
type Metrics struct {
	table.Container
	cgroup.Detail
	Layer  Layer
	Device string   // of the filesystem with the writable layer, such as /dev/vda1
	Names  []string // of Devices, in their order
}

// PodMetrics is all that is counted of a pod.
type PodMetrics struct {
	table.Pod
	Interfaces []Interface // as in PodStats
	Containers []Metrics   // those that run
}

// Metrics returns what is counted of every pod in which something runs (CRI ListPodSandboxMetrics).
func (f *Figures) Metrics() ([]PodMetrics, error) {
	pods := live(f.table.Pods())
	all := make([]PodMetrics, len(pods))
	err := each(len(pods), func(i int) {
		p := pods[i]
		all[i] = PodMetrics{Pod: p, Interfaces: interfacesOf(p)}
		for _, c := range running(f.table.ContainersOf(p)) {
			if d := f.cgroups().Detail(c.Cgroup, f.hugePages(c)); !d.Gone() {
				all[i].Containers = append(all[i].Containers, Metrics{Container: c, Detail: d})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		for _, c := range p.Containers {
			if err := starved(Stats{Usage: c.Usage}); err != nil {
				return nil, err
			}
		}
	}
	f.addDisks(all)
	return all, nil
}

// hugePages returns the sizes that the container may use any of: all others are denied it.
func (f *Figures) hugePages(c table.Container) []string {
	var sizes []string
	for _, l := range c.Resources().GetHugepageLimits() {
		if l.GetLimit() > 0 && len(f.host.HugePageSizes) > 0 {
			sizes = append(sizes, l.GetPageSize())
		}
	}
	return sizes
}

func (f *Figures) addDisks(pods []PodMetrics) {
	var all []*Metrics
	var dirs []string
	for i := range pods {
		for j := range pods[i].Containers {
			c := &pods[i].Containers[j]
			all, dirs = append(all, c), append(dirs, f.layout.Upper(c.ID))
		}
	}
	names := deviceNames{}
	root := names.below(f.layout.Root)
	for i, l := range f.layers.measure(dirs...) {
		all[i].Layer, all[i].Device = l, root
		for _, d := range all[i].Devices {
			all[i].Names = append(all[i].Names, names.of(d.Major, d.Minor))
		}
	}
}

// deviceNames are the names of block devices that were looked up for one answer. Numbers are given
// again to other devices.
type deviceNames map[[2]uint64]string

// of returns the name such as /dev/vda1, or "major:minor" of a device without one.
func (n deviceNames) of(major, minor uint64) string {
	key := [2]uint64{major, minor}
	if name, ok := n[key]; ok {
		return name
	}
	name := fmt.Sprintf("%d:%d", major, minor)
	event, err := os.ReadFile("/sys/dev/block/" + name + "/uevent")
	if err == nil {
		for line := range strings.Lines(string(event)) {
			if short, ok := strings.CutPrefix(line, "DEVNAME="); ok {
				name = "/dev/" + strings.TrimSpace(short)
			}
		}
	}
	n[key] = name
	return name
}

// below returns the name of the device that a folder lies on.
func (n deviceNames) below(dir string) string {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return ""
	}
	return n.of(uint64(unix.Major(st.Dev)), uint64(unix.Minor(st.Dev)))
}
