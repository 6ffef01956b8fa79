package preflight

import (
	"context"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/imageservice"
)

func lookOverlay(_ context.Context, c config.Config) []Finding {
	if err := imageservice.CheckHost(c.Root); err != nil {
		return []Finding{{What: "overlayfs does not work on root " + c.Root + ": " + err.Error(), Fatal: true,
			Remedy: "modprobe overlay, or put root on ext4, xfs or btrfs"}}
	}
	return []Finding{{What: "overlayfs on root " + c.Root}}
}
