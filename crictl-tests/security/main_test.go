// Package security tests the promises of docs/security.md.
package security

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
