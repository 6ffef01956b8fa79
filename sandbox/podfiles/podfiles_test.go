package podfiles

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResolvConf(t *testing.T) {
	got, err := resolvConf(&runtimeapi.DNSConfig{Servers: []string{"10.96.0.10", "fd00::10"}, Searches: []string{"a.b", "b"}, Options: []string{"ndots:5"}})
	if want := "search a.b b\nnameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := resolvConf(&runtimeapi.DNSConfig{}); err != nil || len(got) != 0 {
		t.Errorf("an empty configuration gave %q, %v: the host's must not be used", got, err)
	}
}
