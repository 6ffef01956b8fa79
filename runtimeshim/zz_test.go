package runtimeshim

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

func TestZZ(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	r, w, _ := os.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := h.client.Exec(context.Background(), Exec{ID: "c", Runtime: h.runc, Process: asJSON(t, process(sh("echo up; sleep 1000000")...)), Stdout: w})
		w.Close()
		done <- err
	}()
	bufio.NewReader(r).ReadString('\n')
	t0 := time.Now()
	h.kill9("shim.lock")
	fmt.Println("killed", time.Since(t0))
	<-done
	fmt.Println("done", time.Since(t0))
	h.task("c")
	fmt.Println("task", time.Since(t0))
	io.ReadAll(r)
	fmt.Println("read", time.Since(t0))
	h.wantNoExecFiles("c")
	fmt.Println("files", time.Since(t0))
}

func TestZZStart(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	var worst, sum, dsum time.Duration
	const n = 40
	for i := range n {
		id := fmt.Sprintf("c%d", i)
		st := h.params(id, []string{"/bin/sleep", "1000"})
		st.Pod = "pod"
		t0 := time.Now()
		h.start(st)
		d := time.Since(t0)
		sum += d
		worst = max(worst, d)
	}
	for _, f := range []string{"shim.lock", "logger.lock"} {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", h.lockPid(f)))
		fmt.Println(f, string(raw))
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.lockPid(f)))
		th, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", h.lockPid(f)))
		fmt.Println("fds", len(fds), "threads", len(th))
	}
	for i := range n {
		t0 := time.Now()
		h.client.Delete(context.Background(), fmt.Sprintf("c%d", i))
		dsum += time.Since(t0)
	}
	fmt.Println("start mean", sum/n, "worst", worst, "delete", dsum/n)
	esum := time.Duration(0)
	for range n {
		t0 := time.Now()
		h.exec(context.Background(), "pod", "/bin/true")
		esum += time.Since(t0)
	}
	fmt.Println("exec", esum/n)
}
