// Package kills ends the daemon and its helpers at every step, breaks what they depend on, and looks at what is still true.
package kills

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
