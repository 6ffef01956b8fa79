// Package lifecycle tests pods and containers from their start to their removal, and what lists, statuses and events say
// of them.
package lifecycle

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
