package crictltests

import (
	"context"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestBadStreams: Exec, Attach and PortForward answer with a URL. What is wrong with a request is said at once, not to whoever opens it.
func TestBadStreams(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	p := d.runPod()
	up, made, done := p.run(idle()), p.create(idle()), p.run(shell("exit 0"))
	terminal := p.run(idle(), with(func(c *cri.ContainerConfig) { c.Tty = true }))
	done.waitExit()
	stopped := d.runPod(onHostNetwork)
	stopped.stop()
	before := d.ledger()
	exec := func(r *cri.ExecRequest) (*cri.ExecResponse, error) { return d.runtime.Exec(ctx, r) }
	attach := func(r *cri.AttachRequest) (*cri.AttachResponse, error) { return d.runtime.Attach(ctx, r) }
	forward := func(r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
		return d.runtime.PortForward(ctx, r)
	}

	d.wantBadIDs(map[string]requestByID{
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
	wantRefused(t, []bad[*cri.ExecRequest]{
		{name: "exec: no stream", change: func(r *cri.ExecRequest) { r.Stdout = false }, field: "std"},
		{name: "exec: tty and stderr", change: func(r *cri.ExecRequest) { r.Tty, r.Stderr = true, true }, field: "stderr"},
		{name: "exec: no command", change: func(r *cri.ExecRequest) { r.Cmd = nil }, field: "cmd"},
		{name: "exec: empty command", change: func(r *cri.ExecRequest) { r.Cmd = []string{""} }, field: "cmd"},
		{name: "exec: NUL in the command", change: func(r *cri.ExecRequest) { r.Cmd = []string{"a\x00b"} }, field: "cmd"},
		{name: "exec: created", change: func(r *cri.ExecRequest) { r.ContainerId = made.id }, field: made.id, code: codes.FailedPrecondition},
		{name: "exec: exited", change: func(r *cri.ExecRequest) { r.ContainerId = done.id }, field: done.id, code: codes.FailedPrecondition},
	}, func() *cri.ExecRequest {
		return &cri.ExecRequest{ContainerId: up.id, Cmd: []string{"true"}, Stdout: true}
	}, exec, func(*cri.ExecResponse) {})
	wantRefused(t, []bad[*cri.AttachRequest]{
		{name: "attach: no stream", change: func(r *cri.AttachRequest) { r.Stdout = false }, field: "std"},
		{name: "attach: tty and stderr", change: func(r *cri.AttachRequest) { r.Tty, r.Stderr = true, true }, field: "stderr"},
		{name: "attach: tty where there is none", change: func(r *cri.AttachRequest) { r.Tty = true }, field: "tty"},
		{name: "attach: no tty where there is one", change: func(r *cri.AttachRequest) { r.ContainerId = terminal.id }, field: "tty"},
		{name: "attach: created", change: func(r *cri.AttachRequest) { r.ContainerId = made.id }, field: made.id, code: codes.FailedPrecondition},
		{name: "attach: exited", change: func(r *cri.AttachRequest) { r.ContainerId = done.id }, field: done.id, code: codes.FailedPrecondition},
	}, func() *cri.AttachRequest { return &cri.AttachRequest{ContainerId: up.id, Stdout: true} }, attach, func(*cri.AttachResponse) {})
	port := func(n int32) func(*cri.PortForwardRequest) {
		return func(r *cri.PortForwardRequest) { r.Port = []int32{80, n} }
	}
	wantRefused(t, []bad[*cri.PortForwardRequest]{
		{name: "forward: port 0", change: port(0), field: "port"},
		{name: "forward: port -1", change: port(-1), field: "port"},
		{name: "forward: port 65536", change: port(65536), field: "port"},
		{name: "forward: more ports than anybody has", change: func(r *cri.PortForwardRequest) { r.Port = slices.Repeat(r.Port, 1025) }, field: "at most 1024"},
		{name: "forward: stopped", change: func(r *cri.PortForwardRequest) { r.PodSandboxId = stopped.id }, field: stopped.id, code: codes.FailedPrecondition},
	}, func() *cri.PortForwardRequest { return &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}} }, forward, func(*cri.PortForwardResponse) {})
	d.wantFlat(before)
}
