package kubetests

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestLogs: logs, of the one before, from a moment on, and as they come.
func TestLogs(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("talker",
		image("c", "docker.io/library/busybox:1", `command: ["sh", "-c", "if test -e /data/again; then echo second; else touch /data/again; echo first; exit 1; fi; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done"]`,
			"volumeMounts: [{name: data, mountPath: /data}]"), "volumes: [{name: data, emptyDir: {}}]"))
	s.awaitLog("talker", "c", "line 3")
	s.contains("the log", s.kubectl("logs", "talker"), "second\nline 1\n")
	if got := s.kubectl("logs", "-p", "talker"); got != "first\n" {
		t.Errorf("the log of the container before is %q", got)
	}
	if got := s.kubectl("logs", "--tail=1", "talker"); strings.Count(got, "\n") != 1 {
		t.Errorf("--tail=1 gives %q", got)
	}
	if got := s.kubectl("logs", "--since=1s", "talker"); strings.Contains(got, "second") || !strings.Contains(got, "line") {
		t.Errorf("--since=1s gives %q", got)
	}
	cmd, out := s.start("logs", "-f", "--tail=1", "talker")
	lines := bufio.NewScanner(out)
	for range 5 {
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "line ") {
			t.Fatalf("logs -f gives %q, %v", lines.Text(), lines.Err())
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// start runs kubectl beside the test and returns its output.
func (s *space) start(args ...string) (*exec.Cmd, io.Reader) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(binFolder, "kube", "kubectl"), append([]string{"--namespace", s.name}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(clusterDir, "admin.kubeconfig"))
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.Fatal(err)
	}
	return cmd, out
}

// TestExec: stdin, stdout, stderr, the exit code, and a terminal.
func TestExec(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("box", image("c", "docker.io/library/busybox:1", `command: ["sleep", "1000000"]`)))
	s.ready("box")
	if out, err := s.feed("to be counted\n", "exec", "-i", "box", "--", "wc", "-c"); err != nil || strings.TrimSpace(out) != "14" {
		t.Errorf("wc of 14 bytes says %q, %v", out, err)
	}
	_, err := s.try("exec", "box", "--", "sh", "-c", "echo oh no >&2; exit 42")
	if err == nil || !strings.Contains(err.Error(), "exit code 42") || !strings.Contains(err.Error(), "oh no") {
		t.Errorf("exit code 42 and a word on stderr become: %v", err)
	}
	kubectl := strings.Join([]string{filepath.Join(binFolder, "kube", "kubectl"), "--kubeconfig", filepath.Join(clusterDir, "admin.kubeconfig"), "-n", s.name, "exec -it box -- sh -c 'tty; until stty size 2>/dev/null | grep 33; do :; done'"}, " ")
	script := exec.Command("script", "-qec", "stty rows 33 cols 99; "+kubectl, "/dev/null")
	out, err := script.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/dev/pts/") || !strings.Contains(string(out), "33 99") {
		t.Errorf("a terminal of 33 lines and 99 columns gives %q, %v", out, err)
	}
}

// TestAttach: kubectl attach sees what the container prints and speaks to its stdin.
func TestAttach(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("echo", image("c", "docker.io/library/busybox:1", `command: ["sh", "-c", "while read line; do echo heard $line; done"]`, "stdin: true")))
	s.ready("echo")
	if out, err := s.feed("one\ntwo\n", "attach", "-i", "echo", "--quiet"); err == nil {
		s.contains("attach", out, "heard two")
	}
	s.awaitLog("echo", "c", "heard two")
}

// TestCopy: kubectl cp both ways.
func TestCopy(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("box", image("c", "docker.io/library/busybox:1", `command: ["sleep", "1000000"]`)))
	s.ready("box")
	dir := t.TempDir()
	there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
	content := strings.Repeat("a line that is copied\n", 50_000)
	if err := os.WriteFile(there, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubectl("cp", there, "box:/tmp/file")
	s.kubectl("cp", "box:/tmp/file", back)
	if got, err := os.ReadFile(back); err != nil || string(got) != content {
		t.Errorf("%d bytes come back as %d, %v", len(content), len(got), err)
	}
}

// TestPortForward: a local port leads into the pod.
func TestPortForward(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("web", image("c", "docker.io/library/web:1", `args: ["serve", "-name", "forwarded"]`)))
	s.ready("web")
	cmd, out := s.start("port-forward", "pod/web", ":8080")
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("port-forward says nothing")
	}
	port := regexp.MustCompile(`:(\d+) ->`).FindStringSubmatch(lines.Text())
	if port == nil {
		t.Fatalf("port-forward says %q", lines.Text())
	}
	for range 3 {
		answer, err := http.Get("http://127.0.0.1:" + port[1] + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || !strings.Contains(string(body), "forwarded") {
			t.Errorf("answer %q, %v", body, err)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// TestDebug: an ephemeral container joins a pod that runs, and sees the processes of its target.
func TestDebug(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("patient", tools("c", "wait")))
	s.ready("patient")
	s.kubectl("debug", "patient", "--image=docker.io/library/busybox:1", "--target=c", "--container=doctor", "--profile=general", "--", "sh", "-c", "ps; sleep 1000000")
	s.awaitLog("patient", "doctor", "toolbox")
	s.awaitValue("pod/patient", "{.status.ephemeralContainerStatuses[0].name}", "doctor")
	if n := s.get("pod/patient", "{.status.containerStatuses[0].restartCount}"); n != "0" {
		t.Errorf("debugging has restarted the container %s times", n)
	}
}
