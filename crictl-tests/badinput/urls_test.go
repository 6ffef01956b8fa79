package badinput

import (
	"context"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestBadStreams: Exec, Attach and PortForward answer with a URL. What is wrong with a request is said at once, not to whoever opens it.
func TestBadStreams(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	p := d.RunPod()
	up, made, done := p.Run(harness.Idle()), p.Create(harness.Idle()), p.Run(harness.Shell("exit 0"))
	terminal := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Tty = true }))
	done.WaitExit()
	stopped := d.RunPod(harness.OnHostNetwork)
	stopped.Stop()
	before := d.Ledger()
	exec := func(r *cri.ExecRequest) (*cri.ExecResponse, error) { return d.Runtime.Exec(ctx, r) }
	attach := func(r *cri.AttachRequest) (*cri.AttachResponse, error) { return d.Runtime.Attach(ctx, r) }
	forward := func(r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
		return d.Runtime.PortForward(ctx, r)
	}

	wantBadIDs(d, map[string]requestByID{
		"Exec": {func(id string) error {
			_, err := exec(&cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
			return err
		}, codes.NotFound, containerID},
		"Attach": {func(id string) error {
			_, err := attach(&cri.AttachRequest{ContainerId: id, Stdout: true})
			return err
		}, codes.NotFound, containerID},
		"PortForward": {func(id string) error {
			_, err := forward(&cri.PortForwardRequest{PodSandboxId: id, Port: []int32{80}})
			return err
		}, codes.NotFound, podID},
	})
	harness.WantRefused(t, []harness.BadRequest[*cri.ExecRequest]{
		{Name: "exec: no stream", Change: func(r *cri.ExecRequest) { r.Stdout = false }, Field: "std"},
		{Name: "exec: tty and stderr", Change: func(r *cri.ExecRequest) { r.Tty, r.Stderr = true, true }, Field: "stderr"},
		{Name: "exec: no command", Change: func(r *cri.ExecRequest) { r.Cmd = nil }, Field: "cmd"},
		{Name: "exec: empty command", Change: func(r *cri.ExecRequest) { r.Cmd = []string{""} }, Field: "cmd"},
		{Name: "exec: NUL in the command", Change: func(r *cri.ExecRequest) { r.Cmd = []string{"a\x00b"} }, Field: "cmd"},
		{Name: "exec: created", Change: func(r *cri.ExecRequest) { r.ContainerId = made.ID }, Field: made.ID, Code: codes.FailedPrecondition},
		{Name: "exec: exited", Change: func(r *cri.ExecRequest) { r.ContainerId = done.ID }, Field: done.ID, Code: codes.FailedPrecondition},
	}, func() *cri.ExecRequest {
		return &cri.ExecRequest{ContainerId: up.ID, Cmd: []string{"true"}, Stdout: true}
	}, exec, func(*cri.ExecResponse) {})
	harness.WantRefused(t, []harness.BadRequest[*cri.AttachRequest]{
		{Name: "attach: no stream", Change: func(r *cri.AttachRequest) { r.Stdout = false }, Field: "std"},
		{Name: "attach: tty and stderr", Change: func(r *cri.AttachRequest) { r.Tty, r.Stderr = true, true }, Field: "stderr"},
		{Name: "attach: tty where there is none", Change: func(r *cri.AttachRequest) { r.Tty = true }, Field: "tty"},
		{Name: "attach: no tty where there is one", Change: func(r *cri.AttachRequest) { r.ContainerId = terminal.ID }, Field: "tty"},
		{Name: "attach: created", Change: func(r *cri.AttachRequest) { r.ContainerId = made.ID }, Field: made.ID, Code: codes.FailedPrecondition},
		{Name: "attach: exited", Change: func(r *cri.AttachRequest) { r.ContainerId = done.ID }, Field: done.ID, Code: codes.FailedPrecondition},
	}, func() *cri.AttachRequest { return &cri.AttachRequest{ContainerId: up.ID, Stdout: true} }, attach, func(*cri.AttachResponse) {})
	port := func(n int32) func(*cri.PortForwardRequest) {
		return func(r *cri.PortForwardRequest) { r.Port = []int32{80, n} }
	}
	harness.WantRefused(t, []harness.BadRequest[*cri.PortForwardRequest]{
		{Name: "forward: port 0", Change: port(0), Field: "port"},
		{Name: "forward: port -1", Change: port(-1), Field: "port"},
		{Name: "forward: port 65536", Change: port(65536), Field: "port"},
		{Name: "forward: more ports than anybody has", Change: func(r *cri.PortForwardRequest) { r.Port = slices.Repeat(r.Port, 1025) }, Field: "the limit is 1024"},
		{Name: "forward: stopped", Change: func(r *cri.PortForwardRequest) { r.PodSandboxId = stopped.ID }, Field: stopped.ID, Code: codes.FailedPrecondition},
	}, func() *cri.PortForwardRequest { return &cri.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{80}} }, forward, func(*cri.PortForwardResponse) {})
	d.WantFlat(before)
}
