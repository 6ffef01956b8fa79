package kubetests

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestLogs: logs, of the one before, from a moment on, and as they come.
func TestLogs(t *testing.T) {
	s := newSpace(t)
	twice := "if test -e /data/again; then echo second; else touch /data/again; echo first; exit 1; fi; "
	s.apply(pod("talker", shell("c", twice+"i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done", "volumeMounts: [{name: data, mountPath: /data}]"),
		"volumes: [{name: data, emptyDir: {}}]"))
	s.awaitLog("talker", "c", "line 3")
	s.contains("the log", s.kubectl("logs", "talker"), "second\nline 1\n")
	if got := s.kubectl("logs", "-p", "talker"); got != "first\n" {
		t.Errorf("the log of the container before is %q", got)
	}
	if got := s.kubectl("logs", "--tail=1", "talker"); strings.Count(got, "\n") != 1 {
		t.Errorf("--tail=1 gives %q", got)
	}
	s.await("the log of the last two seconds", func() error {
		got, err := s.try("logs", "--since=2s", "talker")
		if err == nil && (strings.Contains(got, "second") || !strings.Contains(got, "line")) {
			err = fmt.Errorf("is %q", got)
		}
		return err
	})
	if got := s.kubectl("logs", "--timestamps", "--tail=1", "talker"); !timestamped.MatchString(got) {
		t.Errorf("--timestamps gives %q", got)
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

var timestamped = regexp.MustCompile(`^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z line \d+\n$`)

// TestLogsOfAll: the logs of all containers, each line with where it comes from, and of one that has ended.
func TestLogsOfAll(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("choir", shell("alto", "echo la; echo lo >&2")+", "+shell("bass", "printf 'no newline'"), "restartPolicy: Never",
		"initContainers: ["+shell("conductor", "echo one two three")+"]"))
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/choir")
	got := s.kubectl("logs", "choir", "--all-containers", "--prefix")
	for _, line := range []string{"[pod/choir/alto] la\n", "[pod/choir/alto] lo\n", "[pod/choir/bass] no newline", "[pod/choir/conductor] one two three\n"} {
		s.contains("the log of all", got, line)
	}
}

// TestLogRotation: the kubelet rotates a log that grows, and no line is lost or doubled.
func TestLogRotation(t *testing.T) {
	s := newSpace(t)
	last := *nodes // its kubelet rotates at 64 KiB
	const lines = 3000
	s.apply(pod("chatter", tools("c", "print", "-lines", strconv.Itoa(lines), "-size", "100", "-every", "8ms"), onNode(last), "restartPolicy: Never"))
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/chatter")
	dir := filepath.Join(clusterDir, fmt.Sprintf("node%d", last), "logs", s.name+"_chatter_"+s.get("pod/chatter", "{.metadata.uid}"), "c")
	var files []string
	var all []byte
	s.await("a rest of the kubelet, which may still rotate and compress what it saw running", func() (err error) {
		files, _ = filepath.Glob(dir + "/0.log*")
		all, err = exec.Command("sh", "-ec", "for f in "+dir+"/0.log*; do case $f in *.gz) gzip -dc $f;; *) cat $f;; esac; done | grep -oE ' F [0-9]{6} ' | sort | uniq -c").Output()
		again, _ := filepath.Glob(dir + "/0.log*")
		if err == nil && (!slices.Equal(files, again) || slices.ContainsFunc(files, func(f string) bool {
			return strings.HasSuffix(f, ".tmp") || slices.Contains(files, f+".gz")
		})) {
			err = fmt.Errorf("there are %v, and then %v", files, again)
		}
		return err
	})
	if len(files) < 2 {
		t.Fatalf("the log was not rotated: %v", files)
	}
	counted := strings.Split(strings.TrimSpace(string(all)), "\n")
	for _, line := range counted {
		if fields := strings.Fields(line); fields[0] != "1" {
			t.Errorf("line %s is there %s times", fields[2], fields[0])
		}
	}
	if len(counted) != lines {
		t.Errorf("%d files have %d lines, %d were written", len(files), len(counted), lines)
	}
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
	out, err := s.terminal("", "exec -it box -- sh -c 'tty; until stty size 2>/dev/null | grep 33; do :; done'")
	if err != nil || !strings.Contains(out, "/dev/pts/") || !strings.Contains(out, "33 99") {
		t.Errorf("a terminal of 33 lines and 99 columns gives %q, %v", out, err)
	}
	_, err = s.try("exec", "box", "--", "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "no-such-program") || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a program that is not there becomes: %v", err)
	}
}

// terminal runs kubectl on a terminal of 33 lines and 99 columns, types the input, and returns what is seen.
func (s *space) terminal(input string, words ...string) (string, error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	line := []string{filepath.Join(binFolder, "kube", "kubectl"), "--kubeconfig", filepath.Join(clusterDir, "admin.kubeconfig"), "-n", s.name}
	script := exec.CommandContext(ctx, "script", "-qec", "stty rows 33 cols 99; "+strings.Join(append(line, words...), " "), "/dev/null")
	script.Stdin = strings.NewReader(input)
	out, err := script.CombinedOutput()
	return string(out), err
}

// TestAttach: kubectl attach sees what the container prints and speaks to its stdin, and ends with the container.
func TestAttach(t *testing.T) {
	s := newSpace(t)
	echo := "while read line; do echo heard $line; done; echo end of input"
	s.apply(pod("echo", shell("c", echo, "stdin: true", "stdinOnce: true"), "restartPolicy: Never") + "---\n" +
		pod("screen", shell("c", "until stty size | grep 33; do sleep 0.1; done; read line; echo heard $line on $(tty)",
			"stdin: true", "stdinOnce: true", "tty: true"), "restartPolicy: Never"))
	s.ready("echo", "screen")
	out, err := s.feed("one\ntwo\n", "attach", "-i", "echo", "--quiet")
	if err != nil {
		t.Error(err)
	}
	s.contains("attach", out, "heard one\nheard two\nend of input\n")
	out, err = s.terminal("typed\n", "attach -it screen")
	if err != nil {
		t.Error(err)
	}
	s.contains("attach with a terminal", out, "33 99")
	s.contains("attach with a terminal", out, "heard typed on /dev/")
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/echo", "pod/screen")
}

// TestRun: kubectl run with input is a command like any other: output, exit code, and nothing left.
func TestRun(t *testing.T) {
	s := newSpace(t)
	run := []string{"run", "-i", "--rm", "--restart=Never", "--quiet", "--pod-running-timeout=3m", "--image=docker.io/library/busybox:1"}
	out, err := s.feed("to be counted\n", append(run, "counter", "--", "wc", "-c")...)
	if err != nil || strings.TrimSpace(out) != "14" {
		t.Errorf("wc of 14 bytes says %q, %v", out, err)
	}
	if _, err = s.try(append(run, "failing", "--", "sh", "-c", "exit 42")...); err == nil || !strings.Contains(err.Error(), "exit status 42") {
		t.Errorf("exit code 42 becomes: %v", err)
	}
	if left := s.get("pods", "{.items[*].metadata.name}"); left != "" {
		t.Errorf("these are left: %s", left)
	}
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
	s.exec("box", "c", "sh", "-c", "mkdir -p /tmp/tree/deep && echo leaf >/tmp/tree/deep/leaf")
	s.kubectl("cp", "box:/tmp/tree", filepath.Join(dir, "tree"))
	if got, err := os.ReadFile(filepath.Join(dir, "tree", "deep", "leaf")); err != nil || string(got) != "leaf\n" {
		t.Errorf("a folder comes back with %q, %v", got, err)
	}
}

// TestPortForward: a local port leads into the pod, by its name or a service's.
func TestPortForward(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("web", image("c", "docker.io/library/web:1", `args: ["serve", "-name", "forwarded"]`,
		"readinessProbe: {tcpSocket: {port: 8080}}")) + // kubectl ends when nobody listens yet
		"---\n{apiVersion: v1, kind: Service, metadata: {name: front}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}")
	s.ready("web")
	for _, to := range [][]string{{"pod/web", ":8080"}, {"service/front", ":80"}} {
		cmd, out := s.start("port-forward", to[0], to[1])
		lines := bufio.NewScanner(out)
		if !lines.Scan() {
			t.Fatal("port-forward says nothing")
		}
		port := regexp.MustCompile(`:(\d+) ->`).FindStringSubmatch(lines.Text())
		if port == nil {
			t.Fatalf("port-forward says %q", lines.Text())
		}
		for range 3 {
			s.contains(to[0], s.fetch("http://127.0.0.1:"+port[1]+"/"), "forwarded")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// fetch gets a URL from the host, which is the first node.
func (s *space) fetch(url string) string {
	s.Helper()
	var body []byte
	s.await(url+" from the host", func() error {
		client := http.Client{Timeout: 5 * time.Second}
		defer client.CloseIdleConnections()
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if body, err = io.ReadAll(answer.Body); err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, body)
		}
		return err
	})
	return string(body)
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

// TestDebugCopy: a copy of a pod with one more container, which sees the others' processes.
func TestDebugCopy(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("patient", tools("c", "wait")))
	s.ready("patient")
	s.kubectl("debug", "patient", "--copy-to=twin", "--share-processes", "--image=docker.io/library/busybox:1", "--container=doctor", "--profile=general",
		"--", "sh", "-c", "until ps | grep [t]oolbox; do sleep 0.2; done; exec sleep 1000000")
	s.ready("twin")
	s.awaitLog("twin", "doctor", "/toolbox wait")
}

// TestDebugNode: a pod on a node that has the node's files below /host, its network and its processes.
func TestDebugNode(t *testing.T) {
	s := newSpace(t)
	s.kubectl("debug", "node/node1", "--image=docker.io/library/busybox:1", "--profile=sysadmin", "--", "sh", "-c",
		"chroot /host cat "+filepath.Join(clusterDir, "node1", "cribox.toml")+"; ps; ip addr")
	name := s.get("pods", "{.items[0].metadata.name}")
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/"+name)
	log := s.kubectl("logs", name)
	for what, want := range map[string]string{"a file of the node": "cribox.sock", "a process of the node": "kubelet", "the node's address": s.nodeAddress(1)} {
		s.contains(what, log, want)
	}
}
