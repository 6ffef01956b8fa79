// Package resources tests what pods and containers get and use: limits, devices, mounts, cgroups, stats and metrics, and
// what the daemon itself costs.
package resources

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
