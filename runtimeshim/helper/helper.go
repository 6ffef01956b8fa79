// Package helper has what shim and logger share as processes that outlive the daemon: a lock, an
// environment, a bounded log, a build id.
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

// PlainEnv is the whole environment of runtimes, and so of their hooks.
var PlainEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// LogLevelEnv is the variable that sets the log level of shim and logger.
const LogLevelEnv = "CRIBOX_LOG_LEVEL"

// Env returns the environment of shim and logger: PlainEnv, the log level and the switches of
// tests.
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

// Pause returns after d, or earlier when ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// LookAgain is the time to wait before reading a file again that could not be read.
const LookAgain = 200 * time.Millisecond

// mostLog is the size in bytes above which a log is truncated.
const mostLog = 256 << 10

// BoundLog limits the size of our own log, which is stderr.
func BoundLog() { log.L.Logger.SetOutput(boundedLog{os.Stderr}) }

// boundedLog truncates its file when it has grown too large, if it is a regular file.
type boundedLog struct{ f *os.File }

func (l boundedLog) Write(b []byte) (int, error) {
	if st, err := unixfd.Stat(unixfd.Of(l.f)); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > mostLog {
		_ = unix.Ftruncate(unixfd.Of(l.f), 0) // it is open for appending
	}
	return l.f.Write(b)
}

// Survive is deferred in goroutines that work on one task: a panic there must not end the process,
// which is the parent of all other tasks.
func Survive() {
	if p := recover(); p != nil {
		log.L.Errorf("panic: %v\n%s", p, debug.Stack())
	}
}

// OutOfResources reports whether err means a lack of resources that may be temporary.
func OutOfResources(err error) bool {
	for _, no := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}
