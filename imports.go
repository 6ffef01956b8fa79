package main

import (
	"context"
	"io"
	"path/filepath"

	"github.com/containerd/log"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/imageservice/imports"
	"github.com/cribox/cribox/internal/guard"
)

// importArchives watches images.import_dir from now on. The function it returns loads the archives
// there until ctx ends; it has to be called.
func importArchives(ctx context.Context, c config.Config, images *imageservice.Images) (load func(context.Context)) {
	const none = "no archives of images are loaded from images.import_dir; restart cribox once this is mended"
	if c.ImportFolder() == "" {
		return func(context.Context) {}
	}
	folder, err := imports.Open(ctx, imports.Config{
		Folder: c.ImportFolder(), Record: filepath.Join(c.Root, "imported.json"),
		Load: func(ctx context.Context, r io.Reader) (ids []string, err error) {
			loaded, err := images.Load(ctx, r, "")
			for _, i := range loaded {
				ids = append(ids, i.ID)
			}
			return ids, err
		},
		Has: func(id string) bool {
			_, err := images.Lookup(id)
			return err == nil
		},
	})
	if err != nil {
		log.G(ctx).WithError(err).Warn(none)
		return func(context.Context) {}
	}
	return func(ctx context.Context) {
		err := guard.Call(ctx, "the import of images", func() error { return folder.Run(ctx) })
		if err != nil {
			log.G(ctx).WithError(err).Warn(none)
		}
	}
}
