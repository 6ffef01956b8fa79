package client

import "testing"

func TestMountLabel(t *testing.T) {
	for spec, want := range map[string]string{
		`{"linux":{"mountLabel":"system_u:object_r:container_file_t:s0:c1,c2"}}`: "system_u:object_r:container_file_t:s0:c1,c2",
		`{"linux":{}}`: "",
		`{"process":{"args":["\"mountLabel\""]},"linux":{"mountLabel":""}}`: "",
		`{"annotations":{"mountLabel":"x"},"linux":{}}`:                     "",
	} {
		if got, err := mountLabel([]byte(spec)); err != nil || got != want {
			t.Errorf("%s: %q, %v", spec, got, err)
		}
	}
	if _, err := mountLabel([]byte(`{"linux":{"mountLabel":1}}`)); err == nil {
		t.Error("a label that is a number is taken")
	}
}
