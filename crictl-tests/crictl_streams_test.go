package crictltests

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// transports are what crictl can be told to speak.
var transports = []string{"spdy", "websocket"}

// typing runs crictl with something to type, and returns when it has ended by itself.
func (d *daemon) typing(typed string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := command("crictl", append(d.crictlFlags(), args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(typed), &out, &errs
	d.must(cmd.Start())
	p := watch(cmd)
	p.wait(d)
	if !cmd.ProcessState.Success() {
		err = p.err
	}
	return out.String(), errs.String(), err
}

// TestCrictlStreams: exec, attach and port-forward as a person types them.
func TestCrictlStreams(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(d.tool("listen", "127.0.0.1:8099", "echo", "HTTP/1.0 200 OK\r\n\r\nfrom the pod"))
	for _, transport := range transports {
		if out, errs, err := d.typing("", "exec", "-r", transport, c.id, "sh", "-c", "echo out; echo err >&2"); err != nil || out != "out\n" || errs != "err\n" {
			t.Errorf("exec by %s: %v, %q, %q", transport, err, out, errs)
		}
		if _, errs, err := d.typing("", "exec", "-r", transport, c.id, "sh", "-c", "exit 7"); err == nil || !strings.Contains(errs, "7") {
			t.Errorf("exec of a command that fails, by %s: %v, %q", transport, err, errs)
		}
	}
	for _, transport := range transports {
		if out, errs, err := d.typing("typed", "exec", "-i", "-r", transport, c.id, "cat"); err != nil || out != "typed" {
			t.Errorf("exec -i by %s: %v, %q, %q", transport, err, out, errs)
		}
		once := p.run(shell("cat; echo end of stdin; exit 2"), with(func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }))
		if out, errs, err := d.typing("typed\n", "attach", "-i", "-r", transport, once.id); err != nil || out != "typed\nend of stdin\n" {
			t.Errorf("attach -i by %s: %v, %q, %q", transport, err, out, errs)
		}
		if st := once.waitExit(); st.ExitCode != 2 {
			t.Errorf("exit code %d", st.ExitCode)
		}
	}
	p.waitListening(8099)
	for _, transport := range transports {
		if got := d.forwardedBy(p, transport); !strings.Contains(got, "from the pod") {
			t.Errorf("port-forward by %s: %q", transport, got)
		}
	}
}

var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+)`)

// forwardedBy returns what a local client gets from port 8099 of the pod through crictl port-forward.
func (d *daemon) forwardedBy(p *pod, transport string) string {
	d.Helper()
	var out buffer
	cmd := command("crictl", append(d.crictlFlags(), "port-forward", "-r", transport, p.id, ":8099")...)
	cmd.Stdout, cmd.Stderr = &out, &out
	d.must(cmd.Start())
	crictl := watch(cmd)
	defer crictl.wait(d)
	defer crictl.signal(syscall.SIGTERM)
	var port string
	eventually(d, "crictl to listen", func() error {
		if m := forwarding.FindStringSubmatch(out.String()); m != nil {
			port = m[1]
		}
		return unless(port != "", "it says %q", out.String())
	})
	r, err := http.Get("http://127.0.0.1:" + port + "/")
	if err != nil {
		return err.Error() + "\n" + out.String()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	d.must(err)
	return string(body)
}

// TestCrictlConfigures: the verbs about the runtime itself.
func TestCrictlConfigures(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	if out := d.crictl("runtime-config"); !strings.Contains(out, "CGROUPFS") && !strings.Contains(out, "SYSTEMD") {
		t.Errorf("runtime-config:\n%s", out)
	}
	d.crictl("update-runtime-config", "--pod-cidr", d.subnet)
	if _, err := d.tryCrictl("update-runtime-config", "--pod-cidr", "not-a-range"); err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
		t.Errorf("update-runtime-config with nonsense: %v", err)
	}
	if out := d.crictl("completion"); !strings.Contains(out, "crictl") {
		t.Errorf("completion:\n%.200s", out)
	}
}
