// Package monitoring tests what the daemon tells of itself: metrics, as Prometheus reads them, and traces.
package monitoring

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
