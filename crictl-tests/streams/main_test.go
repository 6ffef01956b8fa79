// Package streams tests exec, attach, logs and port-forward.
package streams

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
