package runtimeshim

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// featuresWait bounds how long a runtime may think about what it can do.
const featuresWait = 10 * time.Second

// Features is what a runtime says that it can do.
type Features struct {
	UserNamespaces bool // it joins and makes them
	IDMappedMounts bool // it maps the ids of mounts
}

// AskFeatures executes the runtime's command features. One that does not know the command is an error.
func AskFeatures(ctx context.Context, runtime string) (Features, error) {
	ctx, cancel := context.WithTimeout(ctx, featuresWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, runtime, "features")
	cmd.Env, cmd.Dir = runtimeEnv, "/"
	out, err := cmd.Output()
	if err != nil {
		return Features{}, fmt.Errorf("%s features: %w", filepath.Base(runtime), err)
	}
	var said features.Features
	if err := json.Unmarshal(out, &said); err != nil {
		return Features{}, fmt.Errorf("%s features: %w", filepath.Base(runtime), err)
	}
	var f Features
	if said.Linux != nil {
		f.UserNamespaces = slices.Contains(said.Linux.Namespaces, "user")
		if m := said.Linux.MountExtensions; m != nil && m.IDMap != nil && m.IDMap.Enabled != nil {
			f.IDMappedMounts = *m.IDMap.Enabled
		}
	}
	return f, nil
}
