package sandbox

import (
	"testing"

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
