package kubetests

import (
	"strings"
	"testing"
)

// TestVolumes: what each kind of volume shows inside.
func TestVolumes(t *testing.T) {
	s := newSpace(t)
	s.kubectl("create", "configmap", "settings", "--from-literal=color=blue", "--from-literal=size=large")
	s.kubectl("create", "secret", "generic", "keys", "--from-literal=key=opensesame")
	s.apply(pod("full", image("c", "docker.io/library/busybox:1", `command: ["sleep", "1000000"]`, `volumeMounts: [
		{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}, {name: config, mountPath: /config}, {name: secret, mountPath: /secret, readOnly: true},
		{name: all, mountPath: /all}, {name: about, mountPath: /about}, {name: host, mountPath: /host}, {name: config, mountPath: /only/color, subPath: color},
		{name: image, mountPath: /image}, {name: image, mountPath: /image-part, subPath: bin}]`, `env: [{name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}},
		{name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}, {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}]`,
		"resources: {limits: {cpu: 250m}}"),
		`volumes: [{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}, {name: config, configMap: {name: settings}},
		{name: secret, secret: {secretName: keys, defaultMode: 256}}, {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}},
		{name: all, projected: {sources: [{configMap: {name: settings, items: [{key: size, path: sub/size}]}}, {secret: {name: keys}},
			{serviceAccountToken: {path: token, expirationSeconds: 3600}}]}},
		{name: host, hostPath: {path: /etc/hostname, type: File}}, {name: image, image: {reference: "docker.io/library/busybox:1"}}]`))
	s.ready("full")
	for command, want := range map[string]string{
		"cat /config/color":                             "blue",
		"cat /only/color":                               "blue",
		"cat /secret/key":                               "opensesame",
		"stat -L -c %a /secret/key":                     "400",
		"cat /all/sub/size":                             "large",
		"cat /all/key":                                  "opensesame",
		"test -s /all/token && echo there":              "there",
		"cat /about/labels":                             `app="full"`,
		"echo $ME $COLOR $CPU":                          "full blue 250",
		"grep ' /memory ' /proc/mounts | cut -d' ' -f3": "tmpfs",
		"df -k /memory | tail -1 | awk '{print $2}'":    "16384",
		"echo a >/disk/f && cat /disk/f":                "a",
		"touch /image/x 2>&1 || true":                   "touch: /image/x: Read-only file system",
		"test -x /image/bin/sh && echo program":         "program",
		"test -x /image-part/sh && echo program":        "program",
	} {
		if got := strings.TrimSpace(s.exec("full", "c", "sh", "-c", command)); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	s.kubectl("patch", "configmap", "settings", "--patch", `{"data": {"color": "green"}}`)
	s.await("the changed config map inside", func() error {
		out, err := s.try("exec", "full", "--", "grep", "-q", "green", "/config/color")
		_ = out
		return err
	})
}
