package vmtests

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	smoke = flag.Bool("smoke", false, "only what takes some minutes")
	few   = flag.Bool("few", false, "of critest only ten specs, and of crictl-tests what depends on the kernel")
	all   = flag.Bool("all", false, "of crictl-tests all tests of the packages that run here")
)

// setup is who makes cgroups, and which program makes containers.
type setup struct{ driver, runtime string }

var setups = []setup{{"systemd", "runc"}, {"cgroupfs", "crun"}}

func (s setup) String() string { return s.driver + "-" + s.runtime }

// slice is the cgroup that pods of these tests are in, in the notation of the driver.
func (s setup) slice() string {
	if s.driver == "systemd" {
		return "vmtests.slice"
	}
	return "/vmtests"
}

// use restarts the daemon with the setup. There must be no pods.
func (s setup) use(t *testing.T) {
	t.Helper()
	must(t, fmt.Sprintf(`crictl rmp -af >&2
		printf 'cgroup_driver = "%s"\ndefault_runtime = "%s"\n' >/etc/cribox/config.toml.d/60-setup.toml
		systemctl restart cribox`, s.driver, s.runtime))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", must(t, "journalctl -u cribox --since '-3 min' -n 60 -o cat --no-pager"))
		}
		must(t, "crictl rmp -af >&2")
	})
}

// forEachSetup runs the test once with each; a smoke test is content with the first.
func forEachSetup(t *testing.T, test func(*testing.T, setup)) {
	for _, s := range setups {
		t.Run(s.String(), func(t *testing.T) {
			if s != setups[0] {
				notInSmoke(t)
			}
			s.use(t)
			test(t, s)
		})
	}
}

func notInSmoke(t *testing.T) {
	t.Helper()
	if *smoke {
		t.Skip("left out of the smoke test")
	}
}

// try runs a shell script on the machine and returns what it printed.
func try(ctx context.Context, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "../hack/vm/ssh.sh", "bash -euo pipefail -s")
	cmd.Stdin = strings.NewReader(script)
	cmd.WaitDelay = 5 * time.Second // ssh.sh has a child
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// must is try for scripts that have to succeed within five minutes.
func must(t *testing.T, script string) string {
	t.Helper()
	return mustWithin(t, 5*time.Minute, script)
}

func mustWithin(t *testing.T, most time.Duration, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	out, err := try(ctx, script)
	if err != nil {
		t.Fatalf("on the machine:\n%s\nprinted %q and ended with %v", script, out, err)
	}
	return out
}

// send puts a program on the machine. It is compressed, because encryption is slow there.
func send(t *testing.T, from, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, "../hack/vm/ssh.sh", "mkdir -p "+filepath.Dir(to)+" && gzip -d >"+to+" && chmod 755 "+to)
	cmd.WaitDelay = 5 * time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(in, gzip.BestSpeed)
	if err == nil {
		_, err = io.Copy(z, f)
		err = errors.Join(err, z.Close(), in.Close())
	}
	if err = errors.Join(err, cmd.Wait()); err != nil {
		t.Fatalf("send %s: %v", from, err)
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := try(ctx, "crictl version"); err != nil {
		fmt.Fprintln(os.Stderr, "no machine with cribox (hack/vm/up.sh, hack/vm/install.sh):", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
