package stats

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/table"
)

// Interface is what went through a network interface of a pod, as the pod sees it.
type Interface struct {
	Name   string // valid UTF-8
	Rx, Tx Traffic
}

// Traffic is counted since the interface was made.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// defaultInterface is what the network's first interface of a pod is called, loopback the one that
// every pod has of its own.
const defaultInterface, loopback = "eth0", "lo"

// Loopback tells whether what goes through the interface stays in the pod.
func (i Interface) Loopback() bool { return i.Name == loopback }

// maxInterfaces is how many interfaces of a pod are told. A pod that may make interfaces may make
// thousands, and the figures of all pods have to fit into one answer.
const maxInterfaces = 64

// interfacesOf returns at most maxInterfaces interfaces of a pod, the default one first and the
// loopback last. Nil for a pod in the host's network, since what goes through the host's interfaces
// is not the pod's, and for one that has the loopback alone. Nothing enters the namespace: the
// kernel shows it through each process in it.
func interfacesOf(p table.Pod) []Interface {
	if p.NetNS == "" {
		return nil
	}
	pids := []int{p.PausePID}
	for _, c := range p.Containers {
		pids = append(pids, c.PID)
	}
	for _, pid := range pids {
		if pid == 0 {
			continue
		}
		if b, ok := readNetDev(pid, p.NetNS); ok {
			return parseInterfaces(string(b))
		}
	}
	return nil
}

// maxNetDev is what is read of a list of interfaces. Who may administer a network can make any
// number of them.
const maxNetDev = 1 << 20

// readNetDev reads the figures of the interfaces in the network namespace that is pinned at path,
// as the process shows them that had the number pid. Another one may have it by now: the folder is
// opened once, and stays that of one process.
func readNetDev(pid int, path string) ([]byte, bool) {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	defer unix.Close(dir)
	var theirs, ours unix.Stat_t
	if unix.Fstatat(dir, "ns/net", &theirs, 0) != nil || unix.Stat(path, &ours) != nil || theirs.Dev != ours.Dev ||
		theirs.Ino != ours.Ino {
		return nil, false
	}
	b, err := readUpTo(fmt.Sprintf("/proc/self/fd/%d/net/dev", dir), maxNetDev)
	return b, err == nil
}

func readUpTo(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// parseInterfaces reads /proc/net/dev: two lines of headings, then a name and sixteen counters on
// each.
func parseInterfaces(dev string) []Interface {
	var all []Interface
	for line := range strings.Lines(dev) {
		name, counters, ok := strings.Cut(line, ":")
		f := strings.Fields(counters)
		if !ok || len(f) < 16 {
			continue
		}
		i := Interface{Name: printable(strings.TrimSpace(name))}
		var rx, tx bool
		i.Rx, rx = traffic(f)
		i.Tx, tx = traffic(f[8:])
		if rx && tx {
			all = append(all, i)
		}
	}
	slices.SortStableFunc(all, func(a, b Interface) int { return cmp.Compare(a.place(), b.place()) })
	if len(all) == 0 || all[0].Loopback() {
		return nil
	}
	return all[:min(len(all), maxInterfaces)]
}

// place is where the interface stands among those of its pod.
func (i Interface) place() int {
	switch i.Name {
	case defaultInterface:
		return 0
	case loopback:
		return 2
	}
	return 1
}

// printable returns the name of an interface as a message can say it: whoever makes one may name it
// with any bytes.
func printable(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	return strconv.Quote(name)
}

func traffic(f []string) (t Traffic, ok bool) {
	for i, counter := range []*uint64{&t.Bytes, &t.Packets, &t.Errors, &t.Dropped} {
		n, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return t, false
		}
		*counter = n
	}
	return t, true
}
