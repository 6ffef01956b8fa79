// Package helper is what shim and logger have in common as processes that
// outlive the daemon: a lock, an environment, a bounded log, a build.
package helper

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// PlainEnv is all that a runtime, and so a hook of it, gets as environment.
var PlainEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// LogLevelEnv sets the log level of shim and logger.
const LogLevelEnv = "CRIBOX_LOG_LEVEL"

// Env is the environment of shim and logger: fixed, and the switches of tests.
func Env() []string {
	env := append([]string{}, PlainEnv...)
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "CRIBOX_STEP") || strings.HasPrefix(kv, "CRIBOX_TEST") ||
			strings.HasPrefix(kv, LogLevelEnv+"=") {
			env = append(env, kv)
		}
	}
	return env
}

// Pause waits d, or less when ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// LookAgain is how long a file that cannot be read now is left alone.
const LookAgain = 200 * time.Millisecond

// mostLog is the size of a log from which on it is emptied.
const mostLog = 256 << 10

// BoundLog keeps our log, which is stderr, from growing without end.
func BoundLog() { log.L.Logger.SetOutput(boundedLog{os.Stderr}) }

// boundedLog empties its file when it is large. Anything else than a file is left alone.
type boundedLog struct{ f *os.File }

func (l boundedLog) Write(b []byte) (int, error) {
	if st, err := unixfd.Stat(unixfd.Of(l.f)); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > mostLog {
		_ = unix.Ftruncate(unixfd.Of(l.f), 0) // it is open for appending
	}
	return l.f.Write(b)
}

// Survive is deferred in goroutines that are about one task: a panic there must not end the parent
// of all the others.
func Survive() {
	if p := recover(); p != nil {
		log.L.Errorf("panic: %v\n%s", p, debug.Stack())
	}
}

// OutOfResources: the machine has no more of something, and may have later.
func OutOfResources(err error) bool {
	for _, no := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}
