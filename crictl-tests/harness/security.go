package harness

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// SymlinkEntry is a symbolic link in a layer.
func SymlinkEntry(name, to string) fixture.Entry {
	return fixture.Entry{Name: name, Type: tar.TypeSymlink, Link: to}
}

// PausePID is the process that holds the pod's namespaces. It waits until that is the pause program
// and has nothing left to do: runtimes return before.
func (p *Pod) PausePID() (pid int) {
	p.Helper()
	Eventually(p, "the pause process of "+p.ID, func() error {
		for _, process := range p.ProcessesOf(p.ID) {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", process.Pid))
			if err == nil && bytes.HasPrefix(status, []byte("Name:\tpause\n")) {
				pid = process.Pid
				return Unless(bytes.Contains(status, []byte("\nState:\tS")), "it is at work")
			}
		}
		return errors.New("there is none")
	})
	return pid
}

// MayFail runs a command that may exit with any code.
func (c *Container) MayFail(args ...string) ExecResult {
	c.Helper()
	r, err := c.TryExec(30, args...)
	c.Must(err)
	return r
}

// Hostile pulls an image of busybox, the layers and the configuration, or ends the test.
func (d *Daemon) Hostile(name string, config v1.Config, layers ...[]fixture.Entry) string {
	d.Helper()
	img, err := fixture.Custom(config, layers...)
	d.Must(err)
	id, err := d.TryHostile(name, img)
	d.Must(err)
	return id
}

// TryHostile pushes an image that was made for one test, and pulls it.
func (d *Daemon) TryHostile(name string, img fixture.Image) (string, error) {
	d.Helper()
	d.Must(d.Registry().Add(name, img))
	return d.TryPull(d.Ref(name), nil)
}

// OfImage makes a container run an image by its id.
func OfImage(id string) ContainerOption {
	return func(c *cri.ContainerConfig) { c.Image = &cri.ImageSpec{Image: id, UserSpecifiedImage: id} }
}

// Secured changes the security context of a container.
func Secured(change func(*cri.LinuxContainerSecurityContext)) ContainerOption {
	return func(c *cri.ContainerConfig) { change(c.Linux.SecurityContext) }
}

// AsUser runs a container as this user.
func AsUser(uid int64) ContainerOption {
	return Secured(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: uid} })
}

// OutputOf is what a container of these options prints before it ends.
func (p *Pod) OutputOf(options ...ContainerOption) string {
	p.Helper()
	c := p.Run(options...)
	c.WaitExit()
	return TextOf(c.FinalLog(), "stdout")
}

// UserFiles is a layer with other accounts than busybox's.
func UserFiles(passwd, group string) []fixture.Entry {
	return []fixture.Entry{{Name: "etc/"}, {Name: "etc/passwd", Data: []byte(passwd)}, {Name: "etc/group", Data: []byte(group)}}
}
