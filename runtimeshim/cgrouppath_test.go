package runtimeshim

import "testing"

func TestCgroupOf(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/pod1/abc": "/kubepods/pod1/abc", "/a/../b": "/b", "/": "/",
		"kubepods-burstable-pod1.slice:cribox:abc": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cribox-abc.scope",
		"system.slice:cribox:abc":                  "/system.slice/cribox-abc.scope",
		"-.slice:cribox:abc":                       "/cribox-abc.scope",
		"":                                         "", "relative/abc": "", "a.slice:cribox": "", "a.slice::abc": "", "a.slice:cribox:": "", "a:cribox:abc": "",
		".slice:cribox:abc": "", "a--b.slice:cribox:abc": "", "-a.slice:cribox:abc": "", "a-.slice:cribox:abc": "", "a.slice:../x:abc": "",
	} {
		if got := CgroupOf(path); got != want {
			t.Errorf("%q lies at %q, want %q", path, got, want)
		}
	}
}
