package vmtests

import (
	"context"
	"flag"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

var seLinux = flag.Bool("selinux", false, "the machine has SELinux: LSM=selinux hack/vm/up.sh")

func needSELinux(t *testing.T) setup {
	t.Helper()
	if !*seLinux {
		t.Skip("the machine has no SELinux; -selinux says it has")
	}
	s := setups[0]
	s.use(t)
	return s
}

// labelled is what a process of a container, and a file of it, are labelled with; level is a pattern.
func labelled(level string) (process, file *regexp.Regexp) {
	return regexp.MustCompile("^system_u:system_r:container_t:" + level + "$"),
		regexp.MustCompile("^system_u:object_r:container_file_t:" + level + "$")
}

const ownLevel = `s0:c\d+,c\d+`

// labelOf returns the label of the first process of a container.
func labelOf(t *testing.T, id string) string {
	t.Helper()
	return must(t, "tr -d '\\0' </proc/"+pidOf(t, id)+"/attr/current")
}

func pidOf(t *testing.T, id string) string {
	t.Helper()
	return must(t, "crictl inspect -o go-template --template '{{.info.pid}}' "+id)
}

// TestSELinuxLabels looks at the labels of processes and of all that a container has as its files.
func TestSELinuxLabels(t *testing.T) {
	s := needSELinux(t)
	pod := s.pod(t, "labels")
	id := container(t, "labels", pod, "main", "echo printed; exec sleep 100000", nil)
	process, file := labelled(ownLevel)
	got := labelOf(t, id)
	if !process.MatchString(got) {
		t.Errorf("the process has the label %q", got)
	}
	if inside := must(t, "crictl exec "+id+" cat /proc/self/attr/current | tr -d '\\0'"); inside != got {
		t.Errorf("a command has the label %q, its container %q", inside, got)
	}
	if pause := must(t, "tr -d '\\0' </proc/$(crictl inspectp -o go-template --template '{{.info.pid}}' "+pod+")/attr/current"); pause != got {
		t.Errorf("the pause program has the label %q, the container %q", pause, got)
	}
	level := got[strings.Index(got, ":s0")+1:]
	files := must(t, fmt.Sprintf(`cd /proc/%s; for f in root root/bin root/dev root/dev/null root/dev/shm root/etc/hosts root/etc/hostname \
		root/etc/resolv.conf fd/1 fd/2; do stat -Lc "%%C $f" $f; done`, pidOf(t, id)))
	for line := range strings.Lines(files) {
		label, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !file.MatchString(label) || !strings.HasSuffix(label, ":"+level) {
			t.Errorf("%s has the label %s, the process %s", name, label, got)
		}
	}
	waitPrinted(t, "labels/main.log", "printed")
}

// TestSELinuxAllKilled: what a container prints while daemon, shim and logger are killed together is
// kept by a socket that the pause program has inherited, which the policy has to let it.
func TestSELinuxAllKilled(t *testing.T) {
	s := needSELinux(t)
	pod := s.pod(t, "killed")
	container(t, "killed", pod, "main", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done", nil)
	pause := must(t, "readlink /proc/$(crictl inspectp -o go-template --template '{{.info.pid}}' "+pod+")/fd/3")
	if !strings.HasPrefix(pause, "socket:") {
		t.Errorf("descriptor 3 of the pause program is %s", pause)
	}
	waitLines(t, "killed/main.log", 20)
	must(t, killed("cribox.service", "systemctl kill -s KILL cribox cribox-shim.scope cribox-logger.scope"))
	waitLines(t, "killed/main.log", 20)
	if got := must(t, "awk '$4 != NR - 1' /var/log/pods/killed/main.log | head"); got != "" {
		t.Errorf("lines are missing or doubled in the log, from here: %s", got)
	}
}

// waitPrinted waits until the log of a container has the line, at most a minute.
func waitPrinted(t *testing.T, log, line string) {
	t.Helper()
	must(t, fmt.Sprintf(`cd /var/log/pods; end=$((SECONDS + 60))
		until grep -q 'stdout F %[2]s$' %[1]s; do
			[ $SECONDS -lt $end ] || { echo "not in the log for a minute" >&2; cat %[1]s >&2; exit 1; }
			sleep 0.2
		done`, log, line))
}

// TestSELinuxOptions asks for labels.
func TestSELinuxOptions(t *testing.T) {
	s := needSELinux(t)
	options := func(o object) object { return object{"security_context": object{"selinux_options": o}} }
	pod := s.podWith(t, "options", object{"selinux_options": object{"level": "s0:c7,c8"}})
	for i, row := range []struct {
		asked object
		want  string
	}{
		{object{}, "system_u:system_r:container_t:s0:c7,c8"},
		{object{"level": "s0:c3"}, "system_u:system_r:container_t:s0:c3"},
		{object{"type": "spc_t"}, "system_u:system_r:spc_t:s0:c7,c8"},
		{object{"user": "system_u", "role": "system_r", "type": "svirt_lxc_net_t", "level": "s0"}, "system_u:system_r:container_t:s0"},
	} {
		id := containerWith(t, "options", pod, fmt.Sprint("c", i), "exec sleep 100000", options(row.asked))
		if got := labelOf(t, id); got != row.want {
			t.Errorf("with %v: label %q, want %q", row.asked, got, row.want)
		}
	}
	for i, asked := range []object{{"type": "nobody_knows_t"}, {"level": "s0:c9999"}, {"level": "top"}} {
		if out := refused(t, "options", pod, fmt.Sprint("bad", i), options(asked)); !strings.Contains(out, "InvalidArgument") {
			t.Errorf("with %v: %s", asked, out)
		}
	}
}

// refused is containerWith for a container that cannot be made. It returns the error.
func refused(t *testing.T, podName, pod, name string, linux object) string {
	t.Helper()
	config := toJSON(t, object{"metadata": object{"name": name}, "image": object{"image": busybox}, "linux": linux})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := try(ctx, fmt.Sprintf("cat >/run/bad.json <<'END'\n%s\nEND\ncrictl create %s /run/bad.json /run/%s.json", config, pod, podName))
	if err == nil {
		return "container " + out + " was made"
	}
	return err.Error()
}

// TestSELinuxApart: what belongs to one pod is closed to another, although both run as root, and a
// folder of the host is closed until it is relabelled.
func TestSELinuxApart(t *testing.T) {
	s := needSELinux(t)
	must(t, `rm -rf /srv/volume; mkdir -p /srv/volume/deep; echo secret >/srv/volume/deep/file; chmod -R a+rwX /srv/volume
		echo outside >/srv/outside; ln -s /srv/outside /srv/volume/link; chcon -R -t var_t /srv/volume /srv/outside`)
	t.Cleanup(func() { must(t, "rm -rf /srv/volume /srv/outside") })
	volume := func(relabel bool) object {
		return object{"mounts": []object{{"host_path": "/srv/volume", "container_path": "/volume", "selinux_relabel": relabel}}}
	}
	read := func(id string) string { return must(t, "crictl exec "+id+" cat /volume/deep/file 2>&1 || true") }

	first, second := s.pod(t, "first"), s.pod(t, "second")
	before := mounting(t, "first", first, "before", volume(false))
	if got := read(before); !strings.Contains(got, "Permission denied") {
		t.Errorf("before it is relabelled, the container reads %q", got)
	}
	owner := mounting(t, "first", first, "owner", volume(true))
	if got := read(owner); got != "secret" {
		t.Errorf("the container that asked for it reads %q", got)
	}
	stranger := mounting(t, "second", second, "stranger", volume(false))
	if got := read(stranger); !strings.Contains(got, "Permission denied") {
		t.Errorf("a container of another pod reads %q", got)
	}
	if a, b := labelOf(t, owner), labelOf(t, stranger); a == b {
		t.Errorf("two pods have the label %q", a)
	}
	if got := must(t, "stat -c %C /srv/outside"); !strings.Contains(got, ":var_t:") {
		t.Errorf("what a link in the volume leads to has become %s", got)
	}
}

// mounting starts a container that idles, with more in its configuration.
func mounting(t *testing.T, podName, pod, name string, more object) string {
	t.Helper()
	config := toJSON(t, with(object{
		"metadata": object{"name": name}, "image": object{"image": busybox},
		"command": []string{"sleep", "100000"}, "log_path": name + ".log",
	}, more))
	return must(t, fmt.Sprintf("cat >/run/%[1]s-c.json <<'END'\n%[2]s\nEND\n"+
		"id=$(crictl create %[3]s /run/%[1]s-c.json /run/%[1]s.json); crictl start $id >&2; echo $id", podName, config, pod))
}

// TestSELinuxPrivileged: a privileged container is not confined, and takes no label from a volume.
func TestSELinuxPrivileged(t *testing.T) {
	s := needSELinux(t)
	must(t, "rm -rf /srv/volume; mkdir /srv/volume; chcon -t var_t /srv/volume")
	t.Cleanup(func() { must(t, "rm -rf /srv/volume") })
	pod := s.podWith(t, "privileged", object{"privileged": true})
	id := mounting(t, "privileged", pod, "main", object{
		"linux":  object{"security_context": object{"privileged": true}},
		"mounts": []object{{"host_path": "/srv/volume", "container_path": "/volume", "selinux_relabel": true}},
	})
	if got := labelOf(t, id); strings.Contains(got, ":container_t:") {
		t.Errorf("the label is %q", got)
	}
	must(t, "crictl exec "+id+" touch /volume/file")
	if got := must(t, "stat -c %C /srv/volume"); !strings.Contains(got, ":var_t:") {
		t.Errorf("the volume has become %s", got)
	}
}

// TestSELinuxPolicyWithoutContainers is what Debian's policy is: it names container_t, and has no such
// type. Pods run without labels then, as with a runtime that knows no SELinux.
func TestSELinuxPolicyWithoutContainers(t *testing.T) {
	s := needSELinux(t)
	must(t, `crictl rmp -af >&2
		sed 's/container_t:/nobody_knows_t:/' /etc/selinux/default/contexts/lxc_contexts >/run/lxc_contexts
		chcon --reference /etc/selinux/default/contexts/lxc_contexts /run/lxc_contexts
		mount --bind /run/lxc_contexts /etc/selinux/default/contexts/lxc_contexts; systemctl restart cribox`)
	t.Cleanup(func() {
		must(t, "crictl rmp -af >&2; umount /etc/selinux/default/contexts/lxc_contexts; systemctl restart cribox; mkdir -p /srv; rm -rf /srv/volume")
	})
	must(t, "mkdir -p /srv/volume; echo data >/srv/volume/file")
	pod := s.pod(t, "plain")
	id := mounting(t, "plain", pod, "main", object{
		"mounts": []object{{"host_path": "/srv/volume", "container_path": "/volume", "selinux_relabel": true}},
	})
	if got := labelOf(t, id); strings.Contains(got, ":container_t:") || strings.Contains(got, "nobody_knows_t") {
		t.Errorf("the label is %q", got)
	}
	if got := must(t, "crictl exec "+id+" cat /volume/file"); got != "data" {
		t.Errorf("the container reads %q", got)
	}
	if got := must(t, "cribox check || true"); !strings.Contains(got, "knows no containers") {
		t.Errorf("cribox check says:\n%s", got)
	}
	asked := object{"security_context": object{"selinux_options": object{"level": "s0:c1"}}}
	if out := refused(t, "plain", pod, "asked", asked); !strings.Contains(out, "FailedPrecondition") {
		t.Errorf("asked for a level: %s", out)
	}
}

// TestSELinuxCritest are the specs about SELinux of the validation suite.
func TestSELinuxCritest(t *testing.T) {
	needSELinux(t)
	ran := 0
	for _, spec := range critest(t, "-ginkgo.focus SELinux", 30*time.Minute) {
		if spec.LeafNodeType != "It" && !spec.failed() || spec.State == "skipped" {
			continue
		}
		ran++
		t.Run(spec.name(), func(t *testing.T) {
			if spec.failed() {
				t.Errorf("%s: %s\n%s", spec.State, spec.Failure.Message, spec.CapturedGinkgoWriterOutput)
			}
		})
	}
	if ran < 17 {
		t.Errorf("%d specs have run, want 17", ran)
	}
}

// TestSELinuxDenied comes last: it reads the audit log of all before it. Nothing is denied to cribox,
// its shim, its logger and the OCI runtime. To containers it is what the tests above want denied;
// critest's top also looks at processes of another level, and at commands that have no label yet.
func TestSELinuxDenied(t *testing.T) {
	needSELinux(t)
	log := must(t, `grep -h 'avc:  *denied' /var/log/audit/audit.log* | grep -E 'scontext=[a-z_]+:[a-z_]+:(container_|spc_)' || true`)
	wanted := regexp.MustCompile(`comm="cat" .*scontext=\S+:container_t:\S+ tcontext=\S+:(var_t|container_file_t):\S+ tclass=(file|dir) permissive=0|` +
		`comm="top" .*scontext=\S+:container_t:\S+ .*permissive=0`)
	expected := 0
	for line := range strings.Lines(log) {
		if wanted.MatchString(line) {
			expected++
			continue
		}
		t.Errorf("denied: %s", strings.TrimSpace(line))
	}
	if expected == 0 {
		t.Error("the audit log has none of what was denied to a container")
	}
}
