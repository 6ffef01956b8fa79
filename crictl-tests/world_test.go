package crictltests

import (
	"context"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// Images that most tests use.
const (
	busybox = "busybox:1"
	toolbox = "tools:1" // busybox with /toolbox
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

// registry is the shared one.
func (d *daemon) registry() *fixture.Registry {
	d.Helper()
	r, err := world()
	d.must(err)
	return r
}

// ref is the reference of a fixture image in the shared registry.
func (d *daemon) ref(name string) string { return d.registry().Ref(name) }

// pulled returns the id of a fixture image, pulling it when it is asked for the first time.
func (d *daemon) pulled(name string) string {
	d.Helper()
	d.pulledMu.Lock()
	defer d.pulledMu.Unlock()
	if id := d.pulledIDs[name]; id != "" {
		return id
	}
	id, err := d.tryPull(d.ref(name), nil)
	d.must(err)
	if d.pulledIDs == nil {
		d.pulledIDs = map[string]string{}
	}
	d.pulledIDs[name] = id
	return id
}

func (d *daemon) tryPull(ref string, auth *cri.AuthConfig) (string, error) {
	return d.pullWith(context.Background(), ref, auth)
}

func (d *daemon) pullWith(ctx context.Context, ref string, auth *cri.AuthConfig) (string, error) {
	r, err := d.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
	if err != nil {
		return "", err
	}
	return r.ImageRef, nil
}

// imageStatus returns nil for an image that is not here.
func (d *daemon) imageStatus(ref string) *cri.Image {
	d.Helper()
	r, err := d.images.ImageStatus(context.Background(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	d.must(err)
	return r.Image
}

func (d *daemon) listImages() []*cri.Image {
	d.Helper()
	r, err := d.images.ListImages(context.Background(), &cri.ListImagesRequest{})
	d.must(err)
	return r.Images
}
