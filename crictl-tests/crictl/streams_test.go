package crictl

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// transports are what crictl can be told to speak.
var transports = []string{"spdy", "websocket"}

// typing runs crictl with something to type, and returns when it has ended by itself.
func typing(d *harness.Daemon, typed string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := harness.Command("crictl", append(d.CrictlFlags(), args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(typed), &out, &errs
	d.Must(cmd.Start())
	p := harness.Watch(cmd)
	p.Wait(d)
	if !cmd.ProcessState.Success() {
		err = p.Err
	}
	return out.String(), errs.String(), err
}

// TestCrictlStreams: exec, attach and port-forward as a person types them.
func TestCrictlStreams(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(d.Tool("listen", "127.0.0.1:8099", "echo", "HTTP/1.0 200 OK\r\n\r\nfrom the pod"))
	for _, transport := range transports {
		if out, errs, err := typing(d, "", "exec", "-r", transport, c.ID, "sh", "-c", "echo out; echo err >&2"); err != nil || out != "out\n" || errs != "err\n" {
			t.Errorf("exec by %s: %v, %q, %q", transport, err, out, errs)
		}
		if _, errs, err := typing(d, "", "exec", "-r", transport, c.ID, "sh", "-c", "exit 7"); err == nil || !strings.Contains(errs, "7") {
			t.Errorf("exec of a command that fails, by %s: %v, %q", transport, err, errs)
		}
	}
	for _, transport := range transports {
		if out, errs, err := typing(d, "typed", "exec", "-i", "-r", transport, c.ID, "cat"); err != nil || out != "typed" {
			t.Errorf("exec -i by %s: %v, %q, %q", transport, err, out, errs)
		}
		once := p.Run(harness.Shell("cat; echo end of stdin; exit 2"), harness.With(func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }))
		if out, errs, err := typing(d, "typed\n", "attach", "-i", "-r", transport, once.ID); err != nil || out != "typed\nend of stdin\n" {
			t.Errorf("attach -i by %s: %v, %q, %q", transport, err, out, errs)
		}
		if st := once.WaitExit(); st.ExitCode != 2 {
			t.Errorf("exit code %d", st.ExitCode)
		}
	}
	p.WaitListening(8099)
	for _, transport := range transports {
		if got := forwardedBy(d, p, transport); !strings.Contains(got, "from the pod") {
			t.Errorf("port-forward by %s: %q", transport, got)
		}
	}
}

var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+)`)

// forwardedBy returns what a local client gets from port 8099 of the pod through crictl port-forward.
func forwardedBy(d *harness.Daemon, p *harness.Pod, transport string) string {
	d.Helper()
	var out harness.Buffer
	cmd := harness.Command("crictl", append(d.CrictlFlags(), "port-forward", "-r", transport, p.ID, ":8099")...)
	cmd.Stdout, cmd.Stderr = &out, &out
	d.Must(cmd.Start())
	crictl := harness.Watch(cmd)
	defer crictl.Wait(d)
	defer crictl.Signal(syscall.SIGTERM)
	var port string
	harness.Eventually(d, "crictl to listen", func() error {
		if m := forwarding.FindStringSubmatch(out.String()); m != nil {
			port = m[1]
		}
		return harness.Unless(port != "", "it says %q", out.String())
	})
	r, err := http.Get("http://127.0.0.1:" + port + "/")
	if err != nil {
		return err.Error() + "\n" + out.String()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	d.Must(err)
	return string(body)
}

// TestCrictlConfigures: the verbs about the runtime itself.
func TestCrictlConfigures(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	if out := d.Crictl("runtime-config"); !strings.Contains(out, "CGROUPFS") && !strings.Contains(out, "SYSTEMD") {
		t.Errorf("runtime-config:\n%s", out)
	}
	d.Crictl("update-runtime-config", "--pod-cidr", d.Subnet)
	if _, err := d.TryCrictl("update-runtime-config", "--pod-cidr", "not-a-range"); err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
		t.Errorf("update-runtime-config with nonsense: %v", err)
	}
	if out := d.Crictl("completion"); !strings.Contains(out, "crictl") {
		t.Errorf("completion:\n%.200s", out)
	}
}
