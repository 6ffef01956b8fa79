package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// CrictlFlags make crictl talk to this daemon, with an empty configuration of its own.
func (d *Daemon) CrictlFlags() []string {
	d.Helper()
	config := filepath.Join(d.Dir, "crictl.yaml")
	d.Must(os.WriteFile(config, nil, 0o600))
	return []string{"--config", config, "--runtime-endpoint", "unix://" + d.Socket, "--image-endpoint", "unix://" + d.Socket, "--timeout", "60s"}
}

// TryCrictl runs the real crictl against the daemon.
func (d *Daemon) TryCrictl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary("crictl"), append(d.CrictlFlags(), args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("crictl %s: %w\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out), err
}

// Crictl returns what crictl prints, or ends the test.
func (d *Daemon) Crictl(args ...string) string {
	d.Helper()
	out, err := d.TryCrictl(args...)
	d.Must(err)
	return out
}

// CrictlJSON decodes what crictl prints into v.
func (d *Daemon) CrictlJSON(v any, args ...string) {
	d.Helper()
	out := d.Crictl(args...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		d.Fatalf("crictl %s does not print JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
}
