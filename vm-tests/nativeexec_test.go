package vmtests

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNativeExec compares, property by property, what cribox and runc make of the same commands on this machine, where a container has
// a scope of systemd, cgroups of version 2 and a profile of AppArmor. The comparison is that of crictl-tests, with daemons of its own.
func TestNativeExec(t *testing.T) {
	notInSmoke(t)
	setups[0].use(t)
	program := filepath.Join(t.TempDir(), "security.test")
	build := exec.Command("go", "test", "-c", "-ldflags", "-s -w", "-o", program, "./security")
	build.Dir = "../crictl-tests"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build crictl-tests: %v\n%s", err, out)
	}
	send(t, program, "/root/crictl-tests/security.test")
	// The harness wants to see all programs; these tests do not execute the last two.
	out := mustWithin(t, 40*time.Minute, `cd /root/crictl-tests; mkdir -p bin
		ln -sfn /opt/cni/bin bin/cni
		for p in cribox cribox-helper runc crictl critest; do ln -sf "$(command -v $p)" bin/$p; done
		ln -sf /bin/false bin/cribox-steps; ln -sf /bin/false bin/ginkgo
		FIXTURE_TOOLBOX=/usr/local/bin/toolbox CRIBOX_BIN=$PWD/bin ./security.test -test.v -test.parallel 2 -test.run '^TestSEC82' >log 2>&1 ||
			{ tail -n 150 log >&2; exit 1; }
		grep -E -e '^ *--- ' log`)
	if n := strings.Count(out, "--- PASS: TestSEC82"); n < 2 || strings.Contains(out, "--- SKIP") {
		t.Errorf("%d tests passed:\n%s", n, out)
	}
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
