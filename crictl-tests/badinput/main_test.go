// Package badinput sends requests that a careful client never sends, and looks at what is refused, what is tolerated
// and what is left.
package badinput

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
