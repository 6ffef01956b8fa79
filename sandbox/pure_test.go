package sandbox

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/runtimeshim"
)

func TestReason(t *testing.T) {
	for _, c := range []struct {
		exit runtimeshim.Exit
		want string
	}{
		{runtimeshim.Exit{Known: true}, "Completed"},
		{runtimeshim.Exit{Known: true, Code: 1}, "Error"},
		{runtimeshim.Exit{Known: true, Code: 137}, "Error"},
		{runtimeshim.Exit{Known: true, Code: 137, OOMKilled: true}, "OOMKilled"},
		{runtimeshim.Exit{Known: true, OOMKilled: true}, "Completed"}, // a child was killed
		{runtimeshim.Exit{Known: true, Code: 1, OOMKilled: true}, "Error"},
		{runtimeshim.Exit{Code: 255}, "Unknown"},
	} {
		if got, _ := reason(c.exit); got != c.want {
			t.Errorf("reason(%+v) = %s, want %s", c.exit, got, c.want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&runtimeapi.DNSConfig{Servers: []string{"10.96.0.10", "fd00::10"}, Searches: []string{"a.b", "b"}, Options: []string{"ndots:5"}})
	if want := "search a.b b\nnameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := resolvConf(&runtimeapi.DNSConfig{}); err != nil || len(got) != 0 {
		t.Errorf("an empty configuration gave %q, %v: the host's must not be used", got, err)
	}
}
