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

// importArchives loads the archives of images.import_dir until ctx ends. The channel is closed when
// it has ended.
func importArchives(ctx context.Context, c config.Config, images *imageservice.Images) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if c.ImportFolder() == "" {
			return
		}
		err := guard.Call(ctx, "the import of images", func() error {
			return imports.Run(ctx, imports.Config{
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
		})
		if err != nil {
			log.G(ctx).WithError(err).Warn("no archives of images are loaded from images.import_dir; restart cribox once this is mended")
		}
	}()
	return ended
}
