package content

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk holds the filesystem of the image data; there are several if something is mounted below the
// root.
type Disk struct{ files []*os.File }

func OpenDisk(root string) (*Disk, error) {
	d := &Disk{}
	seen := map[uint64]bool{}
	for _, name := range []string{"content", "layers"} {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			d.Close()
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			d.Close()
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

// Sync waits until everything written so far is on disk. It returns the first write error since
// OpenDisk.
func (d *Disk) Sync(syncfs func(fd int) error) error {
	for _, f := range d.files {
		if err := syncfs(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disk) Close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
