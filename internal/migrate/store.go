package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Image is an image of containerd.
type Image struct {
	Names     []string // with tags, or with digests where there is no tag
	Digest    string   // of its manifest or index
	MediaType string
	Pinned    bool
}

// Store is what containerd has on the disk for a kubelet.
type Store struct {
	Images []Image
	Blobs  string         // folder of blobs, as in an OCI layout
	Others map[string]int // images that are somebody else's, such as Docker's, by namespace
}

// Parts of containerd's folder and of its database.
const (
	metaFile     = "io.containerd.metadata.v1.bolt/meta.db"
	blobsFolder  = "io.containerd.content.v1.content/blobs"
	kubernetes   = "k8s.io"
	pinnedLabel  = "io.cri-containerd.pinned"
	copyTries    = 20
	metaPages    = 2 // hold the number of the last transaction
	maxDatabase  = 1 << 30
	databaseWait = time.Second
)

// OpenStore reads the images of the store in containerd's folder, which may be in use, and changes
// nothing there. A folder without a database has none.
func OpenStore(root string) (*Store, error) {
	s := &Store{Blobs: filepath.Join(root, blobsFolder), Others: map[string]int{}}
	path := filepath.Join(root, metaFile)
	database, err := snapshot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("images of containerd: %w", err)
	}
	defer database.Close()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: databaseWait,
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return reopen(database) }})
	if err != nil {
		return nil, fmt.Errorf("images of containerd: %s: %w", path, err)
	}
	defer db.Close()
	return s, db.View(s.read)
}

// snapshot copies a database of bbolt into memory. Whoever has it open writes a transaction's pages
// where none of the last transaction are, and at last one of the first two pages. So a copy is whole
// when these are the same before and after it.
func snapshot(path string) (*os.File, error) {
	from, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate("meta.db", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	to := os.NewFile(uintptr(fd), "meta.db")
	for range copyTries {
		before, err := firstPages(from)
		if err == nil {
			err = copyAll(to, from)
		}
		after, err2 := firstPages(from)
		if err = errors.Join(err, err2); err != nil {
			to.Close()
			return nil, err
		}
		if bytes.Equal(before, after) {
			return to, nil
		}
	}
	to.Close()
	return nil, fmt.Errorf("%s changes all the time: stop containerd", path)
}

func firstPages(f *os.File) ([]byte, error) {
	b := make([]byte, metaPages*os.Getpagesize())
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

func copyAll(to, from *os.File) error {
	if err := to.Truncate(0); err != nil {
		return err
	}
	n, err := io.Copy(io.NewOffsetWriter(to, 0), io.NewSectionReader(from, 0, maxDatabase))
	if err == nil && n == maxDatabase {
		err = fmt.Errorf("it is larger than %d bytes", maxDatabase)
	}
	return err
}

// reopen returns a second descriptor, which is closed on its own.
func reopen(f *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// read reads the images of all namespaces.
func (s *Store) read(tx *bbolt.Tx) error {
	root := tx.Bucket([]byte("v1"))
	if root == nil {
		return nil
	}
	return root.ForEachBucket(func(namespace []byte) error {
		images := root.Bucket(namespace).Bucket([]byte("images"))
		if images == nil {
			return nil
		}
		if string(namespace) != kubernetes {
			n := 0
			err := images.ForEachBucket(func([]byte) error { n++; return nil })
			if n > 0 {
				s.Others[string(namespace)] = n
			}
			return err
		}
		return s.readImages(images)
	})
}

// readImages reads the images of a namespace. containerd has one record for each name.
func (s *Store) readImages(images *bbolt.Bucket) error {
	byDigest := map[string]*Image{}
	err := images.ForEachBucket(func(name []byte) error {
		record := images.Bucket(name)
		target := record.Bucket([]byte("target"))
		if target == nil {
			return nil
		}
		digest := string(target.Get([]byte("digest")))
		one := byDigest[digest]
		if one == nil {
			one = &Image{Digest: digest, MediaType: string(target.Get([]byte("mediatype")))}
			byDigest[digest] = one
		}
		one.Names = append(one.Names, string(name))
		labels := record.Bucket([]byte("labels"))
		one.Pinned = one.Pinned || labels != nil && string(labels.Get([]byte(pinnedLabel))) == "pinned"
		return nil
	})
	for _, digest := range sortedKeys(byDigest) {
		image := byDigest[digest]
		image.Names = properNames(image.Names)
		s.Images = append(s.Images, *image)
	}
	slices.SortStableFunc(s.Images, func(a, b Image) int { return slices.Compare(a.Names, b.Names) })
	return err
}

// properNames leaves out IDs, which containerd has as names, too.
func properNames(names []string) []string {
	proper := slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, "sha256:") })
	slices.Sort(proper)
	return proper
}
