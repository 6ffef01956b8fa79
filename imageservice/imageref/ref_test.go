package imageref

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const someHex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":                               "docker.io/library/busybox:latest",
		"busybox:1.29":                          "docker.io/library/busybox:1.29",
		"docker.io/busybox":                     "docker.io/library/busybox:latest",
		"index.docker.io/library/busybox":       "docker.io/library/busybox:latest",
		"user/app":                              "docker.io/user/app:latest",
		"localhost/x":                           "localhost/x:latest",
		"localhost:5000/x":                      "localhost:5000/x:latest",
		"x:5000/y":                              "x:5000/y:latest",
		"x.io/y:5000":                           "x.io/y:5000",
		"127.0.0.1:80/a/b/c:t":                  "127.0.0.1:80/a/b/c:t",
		"[::1]:5000/a":                          "[::1]:5000/a:latest",
		"registry.k8s.io/pause:3.9":             "registry.k8s.io/pause:3.9",
		"a@sha256:" + someHex:                   "docker.io/library/a@sha256:" + someHex,
		"a:b@sha256:" + someHex:                 "docker.io/library/a@sha256:" + someHex, // the tag is ignored
		"sha256:abc":                            "docker.io/library/sha256:abc",
		"beef":                                  "docker.io/library/beef:latest",
		"K8S.io/x":                              "K8S.io/x:latest",
		"localhost/" + strings.Repeat("a", 200): "localhost/" + strings.Repeat("a", 200) + ":latest",
	} {
		got, err := Parse(in)
		if err != nil || got.String() != want {
			t.Errorf("%s is %s (%v), want %s", in, got, err, want)
		}
	}
}

func TestParseTargetRefuses(t *testing.T) {
	for _, in := range []string{
		"", " ", "UPPER", "a/UPPER", "a b", "a:", ":tag", "a@", "a@sha256:", "a@sha256:../../x", "a@md5:d41d8cd98f00b204e9800998ecf8427e",
		"a@sha256:" + strings.ToUpper(someHex), "a@sha256:" + strings.Repeat("0", 10<<10), "a@sha512:" + someHex + someHex,
		someHex, "sha256:" + someHex, "../x", "/x", "x/", "registry.example.com./x", "exämple.com/x", "http://x/y", "a\x00b", "a\nb",
		"x//y", "[::1]/", "a:b:c", "a/" + strings.Repeat("a", 300),
	} {
		got, err := Parse(in)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.80q is taken as %s (%v)", in, got, err)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"busybox", "a:b@sha256:" + someHex, "[::1]:5000/a", "x:5000/y:z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		b, err := Parse(a.String())
		if err != nil || a != b {
			t.Errorf("%q is %s and then %s (%v)", s, a, b, err)
		}
	})
}
