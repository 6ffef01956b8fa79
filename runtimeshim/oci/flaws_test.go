package oci

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// TestNativeRunc: what is done natively is what a runc from 1.3.1 on does.
func TestNativeRunc(t *testing.T) {
	const runc = "org.opencontainers.runc.version"
	for _, row := range []struct {
		key, version string
		want         bool
	}{
		{runc, "1.3.1", true}, {runc, "1.3.6+dev", true}, {runc, "v1.5.3", true}, {runc, "1.10.0", true}, {runc, "2.0.0", true},
		{runc, "1.3.0", false}, {runc, "1.2.9", false}, {runc, "1.1.12", false}, {runc, "0.1.1", false}, {runc, "unknown", false}, {runc, "", false},
		{"run.oci.crun.version", "1.20.0", false},
	} {
		if got := readFeatures(features.Features{Annotations: map[string]string{row.key: row.version}}).Native; got != row.want {
			t.Errorf("%s %q: %v", row.key, row.version, got)
		}
	}
}
