package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// pulled are the references of the images of one round: new ones for each, so that nothing has to be
// deleted on the way. A file system that has just deleted much is slow with new files.
type pulled struct{ many, big, one string }

// serveImages serves the images of a round, in a registry that the caller closes.
func serveImages(ctx context.Context, certs string, round int) (*fixture.Registry, pulled, error) {
	registry, err := fixture.Start(ctx, fixture.Options{Addr: "127.0.0.1:0"})
	if err != nil {
		return nil, pulled{}, err
	}
	add := func(name string, layers, files, size int) (string, error) {
		text := newText(uint64(round), name)
		var lists [][]fixture.Entry
		for l := range layers {
			var list []fixture.Entry
			for f := range files {
				list = append(list, fixture.Entry{Name: fmt.Sprintf("data/%d/%d/%d", l, f/100, f), Data: text.next(size)})
			}
			lists = append(lists, list)
		}
		image, err := fixture.Custom(v1.Config{}, lists...)
		if err != nil {
			return "", err
		}
		return registry.Ref(name + ":1"), registry.Add(name+":1", image)
	}
	images := pulled{}
	err = registry.WriteCertsD(certs)
	for _, i := range []struct {
		ref                 *string
		name                string
		layers, files, size int
	}{
		{&images.many, "many", 6, 4000, 4 << 10},
		{&images.big, "big", 5, 60, 1 << 20},
		{&images.one, "one", 1, 1, 300 << 20},
	} {
		if err == nil {
			*i.ref, err = add(i.name, i.layers, i.files, i.size)
		}
	}
	if err != nil {
		registry.Close()
	}
	return registry, images, err
}

// text is made of words, and compresses as programs and texts do, to about a third.
type text struct {
	random *rand.Rand
	words  []string
}

func newText(round uint64, name string) text {
	t := text{random: rand.New(rand.NewPCG(round, uint64(len(name)))), words: make([]string, 4096)}
	for i := range t.words {
		var b strings.Builder
		for range 3 + t.random.IntN(8) {
			b.WriteByte(byte('a' + t.random.IntN(26)))
		}
		t.words[i] = b.String() + " "
	}
	return t
}

func (t text) next(size int) []byte {
	b := make([]byte, 0, size+16)
	for len(b) < size {
		b = append(b, t.words[t.random.IntN(len(t.words))]...)
	}
	return b[:size]
}

// measurePulls pulls each image once.
func (r *runtime) measurePulls(ctx context.Context, images pulled) error {
	for _, pull := range []struct {
		ref       string
		time, cpu *figure
	}{
		{images.many, pullMany, pullManyCPU}, {images.big, pullBig, pullBigCPU}, {images.one, pullOne, pullOneCPU},
	} {
		before, err := r.cpu()
		if err != nil {
			return err
		}
		if err := r.figures.time(pull.time, func() error { _, err := r.pull(ctx, pull.ref); return err }); err != nil {
			return err
		}
		after, err := r.cpu()
		if err != nil {
			return err
		}
		r.figures.add(pull.cpu, milliseconds(after-before))
	}
	return nil
}

// pull returns what a container names the image by.
func (r *runtime) pull(ctx context.Context, ref string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	got, err := cri.NewImageServiceClient(r.conn).PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	return got.ImageRef, nil
}

// measureFiles removes a pod whose container has written many files.
func (r *runtime) measureFiles(ctx context.Context, image string) error {
	if _, err := r.pull(ctx, image); err != nil {
		return err
	}
	p := r.newPod()
	p.image, p.command = image, []string{"sh", "-c", "cp -r /data /copy && exec true"}
	if err := p.up(ctx); err != nil {
		return err
	}
	if err := p.ended(ctx); err != nil {
		return err
	}
	if err := p.stop(ctx); err != nil {
		return err
	}
	if err := r.figures.time(removeFiles, func() error { return p.remove(ctx) }); err != nil {
		return err
	}
	return p.removeCgroup()
}
