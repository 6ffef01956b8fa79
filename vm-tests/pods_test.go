package vmtests

import (
	"encoding/json"
	"fmt"
	"testing"
)

// pod starts a pod and returns its ID.
func (s setup) pod(t *testing.T, name string) string {
	t.Helper()
	return s.podWith(t, name, object{})
}

// podWith is pod with a security context.
func (s setup) podWith(t *testing.T, name string, security object) string {
	t.Helper()
	config := toJSON(t, object{
		"metadata":      object{"name": name, "namespace": "vmtests", "uid": name},
		"log_directory": "/var/log/pods/" + name,
		"linux":         object{"cgroup_parent": s.slice(), "security_context": security},
	})
	return must(t, fmt.Sprintf("rm -rf /var/log/pods/%[1]s; mkdir -p /var/log/pods/%[1]s; cat >/run/%[1]s.json <<'END'\n%[2]s\nEND\n"+
		"crictl pull docker.io/library/busybox:1 >&2; crictl runp /run/%[1]s.json", name, config))
}

// container starts a container of the pod that runs a shell script, with these limits, and returns its ID.
func container(t *testing.T, podName, pod, name, script string, resources object) string {
	t.Helper()
	return containerWith(t, podName, pod, name, script, object{"resources": resources})
}

// containerWith is container with all that is special to Linux.
func containerWith(t *testing.T, podName, pod, name, script string, linux object) string {
	t.Helper()
	config := toJSON(t, object{
		"metadata": object{"name": name},
		"image":    object{"image": "docker.io/library/busybox:1"},
		"command":  []string{"sh", "-c", script},
		"log_path": name + ".log",
		"linux":    linux,
	})
	return must(t, fmt.Sprintf("cat >/run/%[1]s-c.json <<'END'\n%[2]s\nEND\n"+
		"id=$(crictl create %[3]s /run/%[1]s-c.json /run/%[1]s.json); crictl start $id >&2; echo $id", podName, config, pod))
}

// status returns a field of the container's status.
func status(t *testing.T, id, field string) string {
	t.Helper()
	return must(t, fmt.Sprintf("crictl inspect -o go-template --template '{{.status.%s}}' %s", field, id))
}

// waitExited waits until the container has ended, at most a minute.
func waitExited(t *testing.T, id string) {
	t.Helper()
	must(t, fmt.Sprintf(`end=$((SECONDS + 60))
		until [ "$(crictl inspect -o go-template --template '{{.status.state}}' %s)" = CONTAINER_EXITED ]; do
			[ $SECONDS -lt $end ] || { echo "the container runs for more than a minute" >&2; exit 1; }
			sleep 0.2
		done`, id))
}

type object map[string]any

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
