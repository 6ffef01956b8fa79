// Package signals knows signals by the numbers of the CRI, the names of images and the numbers of
// Linux; it sends none.
package signals

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// The kernel's range of realtime signals, as programs count it: the first two belong to the C
// library.
const sigRTMin, sigRTMax = 34, 64

// criSignals by number of the CRI's enum, up to the first realtime one. The
// names of the enum changed between versions of the API; its numbers do not.
var criSignals = [...]string{
	1: "SIGABRT", 2: "SIGALRM", 3: "SIGBUS", 4: "SIGCHLD", 5: "SIGCLD", 6: "SIGCONT", 7: "SIGFPE", 8: "SIGHUP",
	9: "SIGILL", 10: "SIGINT", 11: "SIGIO", 12: "SIGIOT", 13: "SIGKILL", 14: "SIGPIPE", 15: "SIGPOLL", 16: "SIGPROF",
	17: "SIGPWR", 18: "SIGQUIT", 19: "SIGSEGV", 20: "SIGSTKFLT", 21: "SIGSTOP", 22: "SIGSYS", 23: "SIGTERM",
	24: "SIGTRAP", 25: "SIGTSTP", 26: "SIGTTIN", 27: "SIGTTOU", 28: "SIGURG", 29: "SIGUSR1", 30: "SIGUSR2",
	31: "SIGVTALRM", 32: "SIGWINCH", 33: "SIGXCPU", 34: "SIGXFSZ",
}

// criRTMin is SIGRTMIN in the enum; from there on it counts as the kernel does.
const criRTMin, criRTMax = 35, 65

// Stop returns the signal that asks the container to end: that of the request, else of the image
// ("SIGQUIT", "QUIT", "3", "SIGRTMIN+3"), else SIGTERM. An unknown number in the request is
// ErrInvalidArgument. An unknown name in the image is ignored, which spec.ForContainer notes.
func Stop(c *runtimeapi.ContainerConfig, image string) (syscall.Signal, error) {
	if n := c.GetStopSignal(); n != runtimeapi.Signal(0) {
		sig, ok := fromCRI(int(n))
		if !ok {
			return 0, check.Invalid("stop_signal", "%d is unknown", n)
		}
		return sig, nil
	}
	if image == "" {
		return syscall.SIGTERM, nil
	}
	if sig, ok := Parse(image); ok {
		return sig, nil
	}
	return syscall.SIGTERM, nil
}

// CRI is the number of the CRI's enum for a signal; 0 when it has none.
func CRI(sig syscall.Signal) runtimeapi.Signal {
	if sig >= sigRTMin && sig <= sigRTMax {
		return runtimeapi.Signal(int(sig) - sigRTMin + criRTMin)
	}
	for n, name := range criSignals {
		if name != "" && unix.SignalNum(name) == sig && unix.SignalName(sig) == name {
			return runtimeapi.Signal(n)
		}
	}
	return 0
}

func fromCRI(n int) (syscall.Signal, bool) {
	if n >= criRTMin && n <= criRTMax {
		return syscall.Signal(n - criRTMin + sigRTMin), true
	}
	if n <= 0 || n >= len(criSignals) {
		return 0, false
	}
	return byName(criSignals[n])
}

// byName knows the aliases that the table of the system lacks.
func byName(name string) (syscall.Signal, bool) {
	switch name {
	case "SIGCLD":
		name = "SIGCHLD"
	case "SIGPOLL":
		name = "SIGIO"
	case "SIGIOT":
		name = "SIGABRT"
	}
	sig := unix.SignalNum(name)
	return sig, sig != 0
}

// Parse reads the signal of an image.
func Parse(s string) (syscall.Signal, bool) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		return syscall.Signal(n), n >= 1 && n <= sigRTMax
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	for prefix, base := range map[string]int{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil || (rest[0] != '+' && rest[0] != '-') {
				return 0, false
			}
		}
		n := base + offset
		return syscall.Signal(n), n >= sigRTMin && n <= sigRTMax
	}
	return byName(name)
}
