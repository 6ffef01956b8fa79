//go:build steps

package step

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// FromEnv returns the hook for crash tests, which these variables control:
//
//	CRIBOX_STEP_KILL=NAME    end the process with SIGKILL at the step; NAME:N at the Nth time
//	CRIBOX_STEP_PANIC=NAME   panic at the step, in the same form
//	CRIBOX_STEP_LOG=FILE     append the name of every step to the file, one per line
func FromEnv() Hook {
	c := &crash{log: os.Getenv("CRIBOX_STEP_LOG")}
	c.kill, c.kills = parse("CRIBOX_STEP_KILL")
	c.panic, c.panics = parse("CRIBOX_STEP_PANIC")
	return c.pass
}

type crash struct {
	mu            sync.Mutex // guards the counts, and keeps log lines whole
	kill, panic   string
	kills, panics int // how many more times to pass the step, counting the last one
	log           string
}

func parse(variable string) (name string, times int) {
	name, n, ok := strings.Cut(os.Getenv(variable), ":")
	if !ok {
		return name, 1
	}
	times, err := strconv.Atoi(n)
	if err != nil || times < 1 {
		panic(fmt.Sprintf("%s: %q is no count", variable, n))
	}
	return name, times
}

func (c *crash) pass(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != "" {
		c.write(name)
	}
	if name == c.panic {
		if c.panics--; c.panics == 0 {
			panic("a test wants a panic at " + name)
		}
	}
	if name != c.kill {
		return
	}
	if c.kills--; c.kills == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (c *crash) write(name string) {
	f, err := os.OpenFile(c.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, name)
}
