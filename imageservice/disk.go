package imageservice

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is the filesystem (or, should someone have mounted one below the root, filesystems) that image data lies on.
type disk struct{ files []*os.File }

func openDisk(root string) (*disk, error) {
	d := &disk{}
	seen := map[uint64]bool{}
	for _, name := range []string{"content", "layers"} {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			d.close()
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			d.close()
			return nil, err
		}
		if seen[st.Dev] {
			f.Close()
			continue
		}
		seen[st.Dev] = true
		d.files = append(d.files, f)
	}
	return d, nil
}

// sync returns when everything written before is on the disk, or with the first write error since openDisk.
func (d *disk) sync(syncfs func(fd int) error) error {
	for _, f := range d.files {
		if err := syncfs(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
