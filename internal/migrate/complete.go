package migrate

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const maxManifest = 8 << 20

// Complete reports the size of an image whose blobs are all here, or says what is not. Of an index,
// containerd has the manifest of one platform as a rule; one that is complete is enough.
func (s *Store) Complete(i Image) (size int64, err error) {
	return s.complete(digest.Digest(i.Digest), 0)
}

const maxDepth = 3 // of indexes

func (s *Store) complete(d digest.Digest, depth int) (int64, error) {
	raw, err := s.document(d)
	if err != nil {
		return 0, err
	}
	var doc struct {
		Manifests []ocispec.Descriptor
		Config    ocispec.Descriptor
		Layers    []ocispec.Descriptor
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return 0, fmt.Errorf("%s: %w", d, err)
	}
	if len(doc.Manifests) > 0 && depth < maxDepth {
		err = fmt.Errorf("no manifest that %s names is here", d)
		for _, m := range doc.Manifests {
			if !s.has(m.Digest) {
				continue
			}
			var size int64
			if size, err = s.complete(m.Digest, depth+1); err == nil {
				return size, nil
			}
		}
		return 0, err
	}
	size, lacks := int64(len(raw)), 0
	for _, blob := range append(doc.Layers, doc.Config) {
		size += blob.Size
		if !s.has(blob.Digest) {
			lacks++
		}
	}
	if lacks > 0 {
		return 0, fmt.Errorf("%d of its %d blobs are not kept", lacks, len(doc.Layers)+1)
	}
	return size, nil
}

func (s *Store) path(d digest.Digest) string {
	if d.Validate() != nil {
		return "/nonexistent"
	}
	return filepath.Join(s.Blobs, string(d.Algorithm()), d.Encoded())
}

func (s *Store) has(d digest.Digest) bool {
	info, err := os.Stat(s.path(d))
	return err == nil && info.Mode().IsRegular()
}

func (s *Store) document(d digest.Digest) ([]byte, error) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, fmt.Errorf("its manifest %s is not here", d)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxManifest))
}
