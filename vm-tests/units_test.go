package vmtests

import (
	"maps"
	"path/filepath"
	"slices"
	"testing"
)

// TestUnits runs unit tests that need such a machine: systemd and its scopes, in which pods are started natively, a kernel that does
// not keep exit codes, and one without overlayfs' lowerdir+, which mounts layers as Linux did before 6.7.
func TestUnits(t *testing.T) {
	notInSmoke(t)
	programs := buildTests(t, "..", "./runtimeshim/systemd", "./runtimeshim/place", "./runtimeshim/client",
		"./imageservice", "./imageservice/layers", "./imageservice/overlay")
	t.Cleanup(func() { must(t, "rm -rf /tmp/cribox-test-rootfs") }) // the tests of client share it, and leave it to the next ones
	must(t, "mkdir -p /root/crictl-tests/bin; ln -sf /usr/local/bin/runc /root/crictl-tests/bin/runc")
	for _, p := range []struct{ name, pattern string }{
		{"systemd", "^TestRealScope$"},
		{"place", "^Test(SEC80|SEC82(FalseProc|OldestFilter)|WaitsForItsScope|FailuresNameTheStep|Take)"},
		{"client", "^Test(NativeScope|ShimDiesInAScope|NativeFails|ExitAfterTheShim)"},
		{"imageservice", "^Test(Mount|VolatileAndLongPaths|UnmountBusy|Check|Usage|DamagedRecordKeepsMountedLayers)"},
		{"layers", "^Test(Hostile|DirectoryTwice|Metadata|NewFiles|RootMode|Whiteouts|Xattrs)"},
		{"overlay", "."},
	} {
		t.Run(p.name, func(t *testing.T) {
			send(t, filepath.Join(programs, p.name+".test"), "/root/crictl-tests/"+p.name+".test")
			results := crictlTests(t, p.name, p.pattern)
			for _, name := range slices.Sorted(maps.Keys(results)) {
				t.Run(name, func(t *testing.T) { results[name].tell(t, "") })
			}
		})
	}
}
