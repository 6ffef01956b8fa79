//go:build steps

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// The build for crash tests ends its own process with SIGKILL at a step: CRIBOX_STEP_KILL=NAME, or NAME:N for the N-th passage.
// CRIBOX_STEP_PANIC=NAME panics there, in the same form.
// CRIBOX_STEP_LOG=FILE gets the name of every step that is passed, one a line.
var (
	stepMu                 = sync.Mutex{}
	stepKill, stepPassage  = parseStep(os.Getenv("CRIBOX_STEP_KILL"))
	stepPanic, panicsAfter = parseStep(os.Getenv("CRIBOX_STEP_PANIC"))
	stepLog                = os.Getenv("CRIBOX_STEP_LOG")
)

func parseStep(s string) (name string, passage int) {
	name, n, ok := strings.Cut(s, ":")
	if !ok {
		return name, 1
	}
	passage, err := strconv.Atoi(n)
	if err != nil || passage < 1 {
		panic(fmt.Sprintf("CRIBOX_STEP_KILL=%q: %q is no count", s, n))
	}
	return name, passage
}

func step(name string) {
	stepMu.Lock()
	defer stepMu.Unlock()
	if stepLog != "" {
		f, err := os.OpenFile(stepLog, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(f, name)
		f.Close()
	}
	if name == stepPanic {
		if panicsAfter--; panicsAfter == 0 {
			panic("a test wants a panic at " + name)
		}
	}
	if name != stepKill {
		return
	}
	if stepPassage--; stepPassage == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
