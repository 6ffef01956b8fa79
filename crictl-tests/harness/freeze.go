package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Freeze stops a process, and returns when none of its threads runs any more: the first to notice the
// signal stops the others, and until then they go on.
func Freeze(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	Eventually(t, fmt.Sprintf("all threads of process %d to stop", pid), func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, file := range threads {
			stat, _ := os.ReadFile(file) // gone by now is as good
			if _, state, ok := strings.Cut(string(stat), ") "); ok && !strings.HasPrefix(state, "T") {
				return fmt.Errorf("%s: %.20s", file, state)
			}
		}
		return err
	})
}
