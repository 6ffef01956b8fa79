package harness

import (
	"context"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// Images that most tests use.
const (
	Busybox = "busybox:1"
	Toolbox = "tools:1" // busybox with /toolbox
)

// world is the one registry that tests share which do not disturb it.
var world = sync.OnceValues(func() (*fixture.Registry, error) {
	return fixture.Start(context.Background(), fixture.Options{})
})

func closeWorld() {
	if r, err := world(); err == nil {
		_ = r.Close()
	}
}

// Registry is the shared one.
func (d *Daemon) Registry() *fixture.Registry {
	d.Helper()
	r, err := world()
	d.Must(err)
	return r
}

// Ref is the reference of a fixture image in the shared registry.
func (d *Daemon) Ref(name string) string { return d.Registry().Ref(name) }

// Pulled returns the id of a fixture image, pulling it when it is asked for the first time.
func (d *Daemon) Pulled(name string) string {
	d.Helper()
	d.pulledMu.Lock()
	defer d.pulledMu.Unlock()
	if id := d.pulledIDs[name]; id != "" {
		return id
	}
	id, err := d.TryPull(d.Ref(name), nil)
	d.Must(err)
	if d.pulledIDs == nil {
		d.pulledIDs = map[string]string{}
	}
	d.pulledIDs[name] = id
	return id
}

// TryPull pulls an image and returns its id.
func (d *Daemon) TryPull(ref string, auth *cri.AuthConfig) (string, error) {
	return d.PullWith(context.Background(), ref, auth)
}

// PullWith pulls an image until ctx ends, and returns its id.
func (d *Daemon) PullWith(ctx context.Context, ref string, auth *cri.AuthConfig) (string, error) {
	r, err := d.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
	if err != nil {
		return "", err
	}
	return r.ImageRef, nil
}

// ImageStatus returns nil for an image that is not here.
func (d *Daemon) ImageStatus(ref string) *cri.Image {
	d.Helper()
	r, err := d.Images.ImageStatus(context.Background(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	d.Must(err)
	return r.Image
}

// ListImages returns the images that the daemon lists.
func (d *Daemon) ListImages() []*cri.Image {
	d.Helper()
	r, err := d.Images.ListImages(context.Background(), &cri.ListImagesRequest{})
	d.Must(err)
	return r.Images
}

// RemoveImage removes an image by its reference or id.
func (d *Daemon) RemoveImage(ref string) error {
	_, err := d.Images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return err
}

// IDOf is the id that the image must get, for the platform of this machine.
func (d *Daemon) IDOf(name string) string {
	d.Helper()
	img, err := d.Registry().Image(name)
	d.Must(err)
	if n := len(img.Platforms); n > 0 {
		return img.Platforms[n-1].ConfigDigest.String() // the catalogue names this machine's last
	}
	return img.ConfigDigest.String()
}

// Account is the account that the registry asks for.
var Account = &cri.AuthConfig{Username: fixture.Username, Password: fixture.Password}
