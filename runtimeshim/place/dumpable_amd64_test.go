package place

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSEC80NotDumpable: the first thing that the program does is to become untraceable, and no call
// joins or makes a namespace before.
func TestSEC80NotDumpable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, err := syscall.ForkExec(file, []string{"program"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Ptrace: true}})
	if errors.Is(err, unix.EPERM) {
		t.Skip("this process may not trace")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Wait4(pid, nil, 0, nil) }()
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil { // it is stopped after its execution
		t.Fatal(err)
	}
	if err := unix.PtraceSyscall(pid, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		t.Fatal(err)
	}
	if regs.Orig_rax != unix.SYS_PRCTL || regs.Rdi != unix.PR_SET_DUMPABLE || regs.Rsi != 0 {
		t.Errorf("the first call is %d(%d, %d), want prctl(PR_SET_DUMPABLE, 0)", regs.Orig_rax, regs.Rdi, regs.Rsi)
	}
}
