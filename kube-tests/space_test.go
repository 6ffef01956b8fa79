package kubetests

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience is how long anything may take that a user would wait for; a machine with two busy processors is slow.
const patience = 3 * time.Minute

// space is a namespace of the cluster that belongs to one test.
type space struct {
	*testing.T
	name string
}

// newSpace makes the namespace. Its end waits until everything in it is gone: a pod that does not go is a failure.
func newSpace(t *testing.T) *space {
	t.Helper()
	t.Parallel()
	return newSpaceAlone(t)
}

// newSpaceAlone is newSpace for a test that has the cluster to itself.
func newSpaceAlone(t *testing.T) *space {
	t.Helper()
	s := &space{T: t, name: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	s.kubectl("create", "namespace", s.name)
	s.await("the namespace's service account", func() error {
		_, err := s.try("get", "serviceaccount", "default")
		return err
	})
	t.Cleanup(func() {
		if t.Failed() {
			s.show()
		}
		start := time.Now()
		s.kubectl("delete", "namespace", s.name, "--timeout=3m")
		s.Logf("the namespace was gone after %v", time.Since(start).Round(time.Second))
	})
	return s
}

// try runs kubectl in the namespace and returns its output.
func (s *space) try(args ...string) (string, error) { return s.feed("", args...) }

// feed is try with input.
func (s *space) feed(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binFolder, "kube", "kubectl"), append([]string{"--namespace", s.name}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(clusterDir, "admin.kubeconfig"))
	cmd.Stdin = strings.NewReader(input)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// kubectl is try for what must work.
func (s *space) kubectl(args ...string) string {
	s.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *space) apply(manifest string) {
	s.Helper()
	if _, err := s.feed(manifest, "apply", "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

// get returns a field of an object as JSONPath finds it.
func (s *space) get(object, path string) string {
	s.Helper()
	return s.kubectl("get", object, "-o", "jsonpath="+path)
}

// wait is kubectl wait: "condition=Ready", "jsonpath={.status.phase}=Failed", "delete".
func (s *space) wait(what string, objects ...string) {
	s.Helper()
	s.kubectl(append([]string{"wait", "--for=" + what, "--timeout=" + patience.String()}, objects...)...)
}

// ready waits for pods to be ready.
func (s *space) ready(pods ...string) {
	s.Helper()
	for i := range pods {
		pods[i] = "pod/" + pods[i]
	}
	s.wait("condition=Ready", pods...)
}

// await asks again until there is no error.
func (s *space) await(what string, ask func() error) {
	s.Helper()
	s.awaitFor(patience, what, ask)
}

// awaitLong is await for what the kubelet does every five minutes, and what a hundred pods do.
func (s *space) awaitLong(what string, ask func() error) {
	s.Helper()
	s.awaitFor(9*time.Minute, what, ask)
}

func (s *space) awaitFor(patience time.Duration, what string, ask func() error) {
	s.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	s.Fatalf("%s: after %v: %v", what, patience, err)
}

// awaitValue waits until a field of an object has a value.
func (s *space) awaitValue(object, path, want string) {
	s.Helper()
	s.await(object+" "+path, func() error {
		got, err := s.try("get", object, "-o", "jsonpath="+path)
		if err == nil && got != want {
			err = fmt.Errorf("is %q, want %q", got, want)
		}
		return err
	})
}

// awaitLog waits until a container's log holds a text.
func (s *space) awaitLog(pod, container, want string) {
	s.Helper()
	s.await("log of "+pod+"/"+container, func() error {
		log, err := s.try("logs", pod, "-c", container)
		if err == nil && !strings.Contains(log, want) {
			err = fmt.Errorf("has no %q: %.400s", want, log)
		}
		return err
	})
}

// awaitEvent waits until an event about the object says the text.
func (s *space) awaitEvent(object, want string) {
	s.Helper()
	s.await("event of "+object, func() error {
		out, err := s.try("get", "events", "--field-selector", "involvedObject.name="+object, "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("none says %q:\n%s", want, out)
		}
		return err
	})
}

// exec runs a command in a pod's container and returns its stdout.
func (s *space) exec(pod, container string, command ...string) string {
	s.Helper()
	return s.kubectl(append([]string{"exec", pod, "-c", container, "--"}, command...)...)
}

// contains fails unless a text is there.
func (s *space) contains(what, text, want string) {
	s.Helper()
	if !strings.Contains(text, want) {
		s.Errorf("%s has no %q:\n%.2000s", what, want, text)
	}
}

// show prints what a person would ask for.
func (s *space) show() {
	for _, args := range [][]string{
		{"get", "all", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"describe", "pods"},
	} {
		out, err := s.try(args...)
		if err != nil {
			out += err.Error()
		}
		s.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
	}
}
