// Package images tests pulls, lists and removals of images, the registries they come from, and images as volumes.
package images

import (
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
