package vmtests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// nextVersion sorts behind every version that a clone of ours can have.
const nextVersion = "v99.0.0"

// nextPackage is where the machine has the Debian package of the version after the installed one.
const nextPackage = "/root/next.deb"

var sendNextPackage = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "vm-tests")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "../hack/packages/build.sh")
	build.Env = append(os.Environ(), "VERSION="+nextVersion, "OUT="+filepath.Join(dir, "out"), "ARCHITECTURES=amd64", "FORMATS=deb")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the next package: %w: %s", err, out)
	}
	built, err := filepath.Glob(filepath.Join(dir, "out", "*.deb"))
	if err != nil || len(built) != 1 {
		return fmt.Errorf("packages %q: %w", built, err)
	}
	deb, err := os.Open(built[0])
	if err != nil {
		return err
	}
	defer deb.Close()
	send := exec.CommandContext(ctx, "../hack/vm/ssh.sh", "cat >"+nextPackage)
	send.Stdin = deb
	if out, err := send.CombinedOutput(); err != nil {
		return fmt.Errorf("send the next package: %w: %s", err, out)
	}
	return nil
})

func needNextPackage(t *testing.T) {
	t.Helper()
	if err := sendNextPackage(); err != nil {
		t.Fatal(err)
	}
}

// TestUpgrade installs the package of a later version while a container prints numbers.
func TestUpgrade(t *testing.T) {
	notInSmoke(t)
	needNextPackage(t)
	s := setups[0]
	s.use(t)
	pod := s.pod(t, "upgrade")
	id := container(t, "upgrade", pod, "main", "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done", nil)
	look := fmt.Sprintf("crictl inspect -o go-template --template '%s' %s; cat /sys/fs/cgroup/*/cribox-shim.scope/cgroup.procs",
		"{{.status.state}} {{.info.pid}} {{.status.startedAt}}", id)
	before := must(t, look)
	waitLines(t, "upgrade/main.log", 20)

	must(t, "dpkg -i "+nextPackage+" >&2; timeout 120 crictl version >&2")
	if got := must(t, "crictl version | sed -n 's/^RuntimeVersion: *//p'"); strings.TrimPrefix(got, "v") != strings.TrimPrefix(nextVersion, "v") {
		t.Errorf("after the upgrade the daemon is of version %s", got)
	}
	if got := must(t, "systemctl is-active cribox; systemctl show -P NRestarts cribox"); got != "active\n0" {
		t.Errorf("after the upgrade the unit is %q", got)
	}
	if after := must(t, look); after != before {
		t.Errorf("after the upgrade container and shim are %s, before they were %s", after, before)
	}
	if got := must(t, "crictl exec "+id+" echo inside"); got != "inside" {
		t.Errorf("after the upgrade an exec prints %q", got)
	}
	waitLines(t, "upgrade/main.log", 20)
	must(t, "crictl stop -t 30 "+id+" >&2")
	if got := status(t, id, "exitCode"); got != "7" {
		t.Errorf("after the upgrade the exit code is %s, want 7", got)
	}
	if got := must(t, "awk '$4 != NR - 1' /var/log/pods/upgrade/main.log | head"); got != "" {
		t.Errorf("lines are missing or doubled in the log, from here: %s", got)
	}
}

// waitLines waits until the log of a container has grown by so many lines, at most a minute.
func waitLines(t *testing.T, log string, more int) {
	t.Helper()
	must(t, fmt.Sprintf(`cd /var/log/pods; end=$((SECONDS + 60)); want=$(($(wc -l <%[1]s) + %[2]d))
		until [ $(wc -l <%[1]s) -ge $want ]; do
			[ $SECONDS -lt $end ] || { echo "no %[2]d lines more in a minute" >&2; exit 1; }
			sleep 0.2
		done`, log, more))
}

// TestPurge purges the package: under a running pod nothing is deleted, and without pods nothing is
// left. Then it installs cribox again.
func TestPurge(t *testing.T) {
	notInSmoke(t)
	needNextPackage(t)
	s := setups[0]
	s.use(t)
	id := container(t, "purge", s.pod(t, "purge"), "main", "exec sleep 100000", nil)
	must(t, "tar -C /etc -cf /root/etc-cribox.tar cribox")
	install := "dpkg --force-confold -i " + nextPackage + " >&2; systemctl enable -q --now cribox; timeout 120 crictl version >&2"
	t.Cleanup(func() {
		must(t, "tar -C /etc -xf /root/etc-cribox.tar; "+install+"; systemctl restart fixture cribox; timeout 120 crictl version >&2")
	})

	if got := must(t, "dpkg --purge cribox >/root/purge.log 2>&1 && echo purged; cat /root/purge.log"); strings.HasPrefix(got, "purged") ||
		!strings.Contains(got, "pods still run") {
		t.Errorf("purged under a running pod: %s", got)
	}
	must(t, install)
	if got := status(t, id, "state"); got != "CONTAINER_RUNNING" {
		t.Errorf("after a purge that was refused, the container is %s", got)
	}

	must(t, "crictl rmp -af >&2; dpkg --purge cribox >&2")
	for what, script := range map[string]string{
		"files":     `find / /run -xdev -name '*cribox*' -not -path '/root/*' -not -path '/var/log/pods/*' -not -path '/proc/*'`,
		"processes": `for p in /proc/[0-9]*; do readlink $p/exe; done | grep cribox`,
		"units":     `systemctl list-units --all --plain --no-legend '*cribox*'`,
		"mounts":    `grep cribox /proc/self/mounts`,
		"links":     `ip -o link | grep -v -e ': lo:' -e ': eth'`,
		"rules":     `nft list tables | grep cribox`,
		"cgroups":   `find /sys/fs/cgroup -name '*cribox*'`,
		"names":     `ls /run/netns`,
	} {
		if got := must(t, "("+script+") 2>/dev/null || true"); got != "" {
			t.Errorf("after the purge there are %s:\n%s", what, got)
		}
	}
}
