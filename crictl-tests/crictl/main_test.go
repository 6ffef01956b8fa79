// Package crictl drives a daemon with the clients that people use: crictl, and critest, the validation suite of the CRI.
package crictl

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
