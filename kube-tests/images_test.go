package kubetests

import (
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
		"forbidden": {image("c", registry+"/library/private:1"), "ImagePullBackOff", "wants a user name and password"},
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

// TestBrokenImages: an image that is not what its manifest says is refused, and the event says why.
func TestBrokenImages(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("broken", image("c", "docker.io/library/broken:wrong-bytes")))
	s.awaitValue("pod/broken", "{.status.containerStatuses[0].state.waiting.reason}", "ImagePullBackOff")
	s.awaitEvent("broken", "digest")
}

// TestPullSecret: a registry that wants a password gets the pod's, and no other pod uses the image without it.
func TestPullSecret(t *testing.T) {
	s := newSpace(t)
	s.kubectl("create", "secret", "docker-registry", "good", "--docker-server="+registry, "--docker-username=alice", "--docker-password=wonderland")
	s.apply(pod("allowed", image("c", registry+"/library/private:1", `command: ["sleep", "1000000"]`), "imagePullSecrets: [{name: good}]"))
	s.ready("allowed")
}

// TestPullPolicy: Always asks the registry each time, IfNotPresent does not, and says so.
func TestPullPolicy(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("first", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`, "imagePullPolicy: Always"), onNode(1)))
	s.ready("first")
	s.awaitEvent("first", "Successfully pulled image")
	s.apply(pod("second", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`, "imagePullPolicy: IfNotPresent"), onNode(1)))
	s.ready("second")
	s.awaitEvent("second", "already present on machine")
}
