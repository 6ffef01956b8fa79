package kubetests

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// registry is where the test images are under their own name, by plain HTTP.
const registry = "10.221.0.1:5000"

func image(name, ref string, more ...string) string {
	return "{name: " + name + `, image: "` + ref + `"` + strings.Join(append([]string{""}, more...), ", ") + "}"
}

// TestImageErrors: what is wrong with an image reaches the person who asked for it.
func TestImageErrors(t *testing.T) {
	s := newSpace(t)
	for name, c := range map[string]struct{ container, reason, message string }{
		"missing":   {image("c", "docker.io/library/nowhere:1"), "ImagePullBackOff", "404 Not Found"},
		"invalid":   {image("c", "docker.io/UPPER/case:1"), "InvalidImageName", ""},
		"forbidden": {image("c", registry+"/library/private:1"), "ImagePullBackOff", "requires a user name and password"},
		"never":     {image("c", "docker.io/library/zstd-never-here:1", "imagePullPolicy: Never"), "ErrImageNeverPull", ""},
		"no-config": {image("c", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`, "envFrom: [{configMapRef: {name: nowhere}}]"),
			"CreateContainerConfigError", `configmap "nowhere" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			in := *s
			in.T = t
			in.apply(pod(name, c.container))
			in.awaitValue("pod/"+name, "{.status.containerStatuses[0].state.waiting.reason}", c.reason)
			if c.message != "" {
				in.awaitEvent(name, c.message)
			}
			if phase := in.get("pod/"+name, "{.status.phase}"); phase != "Pending" {
				t.Errorf("the phase is %s, want Pending", phase)
			}
		})
	}
}

// TestBrokenImages: an image that is not what its manifest says, or not for this machine, is refused, and the event says why.
func TestBrokenImages(t *testing.T) {
	s := newSpace(t)
	refused := map[string]struct{ ref, why string }{
		"other-bytes":      {"broken:wrong-bytes", "digest"},
		"too-short":        {"broken:small-size", "is announced with 111 bytes, but its descriptor says 110"},
		"too-long":         {"broken:large-size", "is announced with 111 bytes, but its descriptor says 1111"},
		"not-a-manifest":   {"broken:not-json", "manifest is not an unambiguous JSON object"},
		"not-a-config":     {"broken:config-no-json", "cannot decode the image config"},
		"old-format":       {"broken:schema1", "manifest schema 1 is not supported"},
		"no-layer":         {"broken:missing-layer", "404 Not Found for blob sha256:"},
		"unknown-layer":    {"broken:layer-type", `layer of type "application/x-nonsense" is not supported`},
		"unpacks-to-other": {"broken:diff-id", "the image config says sha256:"},
		"link-outside":     {"hostile:hardlink-dotdot", `layer entry "stolen": hard link to`},
		"other-machine":    {"busybox:foreign", "no image for linux/" + runtime.GOARCH},
	}
	var all strings.Builder
	for name, r := range refused {
		all.WriteString(pod(name, image("c", "docker.io/library/"+r.ref)) + "---\n")
	}
	s.apply(all.String())
	for name, r := range refused {
		s.awaitEvent(name, r.why)
		s.awaitEvent(name, "Error: ErrImagePull")
		s.awaitValue("pod/"+name, "{.status.containerStatuses[0].state.waiting.reason}", "ImagePullBackOff")
	}
}

// TestEscapingLayers: what a layer writes outside of the root lands inside of it.
func TestEscapingLayers(t *testing.T) {
	s := newSpace(t)
	const target = "/tmp/cribox-escape"
	if err := os.MkdirAll(target, 0o755); err != nil { // a link to nothing leads nobody outside
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if planted, _ := os.ReadDir(target); len(planted) > 0 {
			t.Errorf("the layers have written outside: %v", planted)
		}
		_ = os.RemoveAll(target)
	})
	for name, found := range map[string]string{"dotdot": target + "/planted", "absolute": target + "/planted", "symlink-parent": "/out/planted"} {
		s.apply(pod(name, image("c", "docker.io/library/hostile:"+name, `command: ["cat", "`+found+`"]`), "restartPolicy: Never"))
		s.wait("jsonpath={.status.phase}=Succeeded", "pod/"+name)
		s.contains(name, s.kubectl("logs", name), "planted by a hostile layer")
	}
}

// TestPullSecret: a registry that wants a password gets the pod's, a wrong one is refused, and no other pod uses the image without it.
func TestPullSecret(t *testing.T) {
	s := newSpace(t)
	for name, password := range map[string]string{"good": "wonderland", "bad": "guessed"} {
		s.kubectl("create", "secret", "docker-registry", name, "--docker-server="+registry, "--docker-username=alice", "--docker-password="+password)
	}
	private := image("c", registry+"/library/private:1", `command: ["sleep", "1000000"]`, "imagePullPolicy: IfNotPresent")
	s.apply(pod("allowed", private, "imagePullSecrets: [{name: good}]", onNode(1)))
	s.ready("allowed")
	s.apply(pod("mistaken", private, "imagePullSecrets: [{name: bad}]", onNode(1)) + "---\n" + pod("stranger", private, onNode(1)))
	for name, why := range map[string]string{"mistaken": "rejects the user name or password", "stranger": "requires a user name and password"} {
		s.awaitEvent(name, why)
		s.awaitValue("pod/"+name, "{.status.containerStatuses[0].state.waiting.reason}", "ImagePullBackOff")
	}
}

// TestPullPolicy: Always asks the registry each time, IfNotPresent and Never do not when the image is there.
func TestPullPolicy(t *testing.T) {
	s := newSpace(t)
	const tag = "docker" // an image that no other test uses
	asked := func() int {
		return strings.Count(s.fetch("http://"+registry+"/requests"), " /v2/library/busybox/manifests/"+tag+" ")
	}
	for _, c := range []struct {
		name, policy, event string
		asks                bool
	}{
		{"first", "Always", "Successfully pulled image", true},
		{"second", "Always", "Successfully pulled image", true},
		{"third", "IfNotPresent", "already present on machine", false},
		{"fourth", "Never", "already present on machine", false},
	} {
		before := asked()
		s.apply(pod(c.name, image("c", "docker.io/library/busybox:"+tag, `command: ["sleep", "1000000"]`, "imagePullPolicy: "+c.policy), onNode(1)))
		s.ready(c.name)
		s.awaitEvent(c.name, c.event)
		if asks := asked() > before; asks != c.asks {
			t.Errorf("%s (%s): the registry was asked: %v, want %v", c.name, c.policy, asks, c.asks)
		}
	}
}

// TestStartErrors: what keeps a container from being made or started is in its status and its event.
func TestStartErrors(t *testing.T) {
	s := newSpace(t)
	for name, c := range map[string]struct{ container, reasons, message string }{
		"no-program": {image("c", "docker.io/library/busybox:1", `command: ["/no/such/program"]`), "RunContainerError CrashLoopBackOff", "/no/such/program"},
		"no-user":    {image("c", "docker.io/library/config:unknown-user"), "CreateContainerError", "nobody-here"},
		"root-image": {image("c", "docker.io/library/busybox:1", "securityContext: {runAsNonRoot: true}"), "CreateContainerConfigError",
			"container has runAsNonRoot and image will run as root"},
	} {
		s.apply(pod(name, c.container))
		s.awaitEvent(name, c.message)
		s.await("the reason of "+name, func() error {
			reason, err := s.try("get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
			if err == nil && (reason == "" || !strings.Contains(c.reasons, reason)) {
				err = fmt.Errorf("is %q, want %s", reason, c.reasons)
			}
			return err
		})
	}
}
