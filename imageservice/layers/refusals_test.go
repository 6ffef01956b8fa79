package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/progress"
)

// This file lists what is refused in a layer, and what containerd does with it: see
// imageservice/refusals_test.go.

type refusalRow imagetest.Refusal // for rows without field names

func ofTar(entries ...any) func(*testing.T) error {
	return func(t *testing.T) error {
		y := newYard(t)
		_, err := y.unpack(imagetest.Tar(t, entries...))
		return err
	}
}

// ofMeter unpacks a file of n letters from a source that claims to have ten compressed bytes,
// within limits.
func ofMeter(limits Limits, image int64) func(*testing.T) error {
	return func(t *testing.T) error {
		y := newYard(t)
		m := &meter{src: Source{Size: 10}, limits: limits.WithDefaults(), image: &budget{most: image}}
		root, err := unix.Open(y.layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		imagetest.Must(t, err)
		defer unix.Close(root)
		_, err = extract(t.Context(), bytes.NewReader(imagetest.Tar(t, imagetest.File("f"), strings.Repeat("x", 1<<20))), root, caps{limits.WithDefaults().Entries, 1 << 20, m})
		return err
	}
}

func ofStream(blob []byte) func(*testing.T) error {
	return func(*testing.T) error {
		r, closer, err := decompress(Source{Reader: bytes.NewReader(blob), Size: int64(len(blob))})
		if err != nil {
			return err
		}
		defer closer()
		_, err = io.Copy(io.Discard, r)
		return err
	}
}

func wideWindow(t *testing.T) []byte {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(256<<20))
	imagetest.Must(t, err)
	_, err = z.Write(bytes.Repeat([]byte("text"), 1<<20))
	imagetest.Must(t, errors.Join(err, z.Flush(), z.Close()))
	return b.Bytes()
}

func refusalRows(t *testing.T) []refusalRow {
	owner := func(uid int) tar.Header { return tar.Header{Name: "x", Uid: uid, Format: tar.FormatPAX} }
	xattr := func(name, value string) tar.Header {
		return tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr." + name: value}}
	}
	deep := strings.TrimSuffix(strings.Repeat("a/", 1500), "/")
	return []refusalRow{
		{"half a tar", func(t *testing.T) error {
			_, err := newYard(t).unpack(imagetest.Tar(t, imagetest.File("f"), strings.Repeat("x", 2000))[:1000])
			return err
		}, "not a complete tar archive", imagetest.Same, ""},
		{"too many entries", func(t *testing.T) error { return (&extractor{most: caps{files: anything()}}).count() }, "(layer_files_max)", imagetest.Waits, imagetest.Amplifies},
		{"directories without end", func(t *testing.T) error {
			var all []any
			for range 4000 {
				all = append(all, imagetest.Dir(deep, 0o755))
			}
			_, err := newYard(t).unpack(imagetest.Tar(t, all...))
			return err
		}, "bytes of directories' names", imagetest.Waits, imagetest.Amplifies},
		{"an entry of an unknown type", ofTar(tar.Header{Name: "x", Typeflag: 'Z'}), "entry of unknown type", imagetest.Same, ""},
		{"a name that no path can be", ofTar(imagetest.File(strings.Repeat("a/", 2100) + "f")), "name of more than", imagetest.Same, ""},
		{"a name with a NUL", func(*testing.T) error { _, err := split(&tar.Header{Name: "a\x00b"}); return err }, "name with a NUL", imagetest.Same, ""},
		{"an owner of -1", ofTar(owner(1<<32 - 1)), "owner 4294967295", imagetest.Runs, imagetest.Wraps},
		{"an owner beyond 32 bits", func(*testing.T) error { _, err := split(&tar.Header{Name: "x", Uid: 1 << 33}); return err }, "owner 8589934592", imagetest.Runs, imagetest.Wraps},
		{"a hard link to nothing", ofTar(imagetest.Hard("h", "gone")), "hard link to", imagetest.Same, ""},
		{"a hard link below nothing", ofTar(imagetest.Hard("h", "gone/f")), "hard link to", imagetest.Same, ""},
		{"a capability that is none", ofTar(xattr("security.capability", "x")), "extended attribute", imagetest.Same, ""},
		{"an attribute larger than a filesystem takes", ofTar(xattr("user.x", strings.Repeat("x", 65<<10))), "extended attribute", imagetest.Same, ""},
		{"a whiteout of nothing", ofTar(imagetest.File(".wh.")), "whiteout without a name", imagetest.Same, ""},
		{"folders deeper than a path, by links", ofTar(imagetest.Dir(deep, 0o755), imagetest.Link("l", deep), imagetest.File("l/"+deep+"/f")), "directories are nested so deeply", imagetest.Same, ""},
		{"links in a circle", ofTar(imagetest.Link("a", "a/b"), imagetest.File("a/x")), "parent \"a\"", imagetest.Same, ""},
		{"a long chain of links to what is not there", func(t *testing.T) error {
			var all []any
			for i := range maxLinks + 2 {
				all = append(all, imagetest.Link(fmt.Sprint("l", i), fmt.Sprintf("gone%d/../l%d", i, i+1)))
			}
			_, err := newYard(t).unpack(imagetest.Tar(t, append(all, imagetest.File("l0/x"))...))
			return err
		}, "too many symbolic links", imagetest.Same, ""},
		{"something below a file", ofTar(imagetest.File("f"), imagetest.File("f/g")), "parent \"f\"", imagetest.Same, ""},

		{"a layer larger than allowed", ofMeter(Limits{LayerBytes: 1000}, 1<<30), "(layer_size_max)", imagetest.Waits, imagetest.Amplifies},
		{"a small layer that fills the disk", ofMeter(Limits{RatioFloor: 1, Reserve: 101}, 1<<30), "(disk_reserve)", imagetest.Waits, imagetest.Amplifies},
		{"an image larger than allowed", ofMeter(Limits{}, 1000), "(image_size_max)", imagetest.Waits, imagetest.Amplifies},
		{"a layer that is not what its config says", func(t *testing.T) error {
			u := NewUnpacker(NewStore(t.TempDir(), func(string) {}), Limits{}.WithDefaults(), &progress.Clock{})
			tarball := imagetest.Tar(t, imagetest.File("f"))
			_, err := u.Unpack(t.Context(), Source{Reader: bytes.NewReader(tarball), Size: int64(len(tarball))}, digest.FromString("other"), nil, &progress.Item{})
			return err
		}, "the image config says", imagetest.Same, ""},
		{"a zstd window of 256 MiB", ofStream(wideWindow(t)), "needs too much memory", imagetest.Waits, imagetest.Amplifies},
		{"half a gzip", ofStream(imagetest.Gzip(imagetest.Noise(t, 1000)).Blob[:500]), "cannot decompress the layer", imagetest.Same, ""},
		{"made-up directories over many layers", func(t *testing.T) error {
			u := &Unpacker{looks: maxLooks}
			return u.look(context.Background())
		}, "too many directories that the layers do not list", imagetest.Waits, imagetest.Amplifies},
	}
}

// unreached are refusals that no known input reaches.
var unreached = []string{
	"layer x made the unpacker panic", // the decoders have no known bug
}

// TestEveryRefusal runs the rows, and requires one for each refusal in the source.
func TestEveryRefusal(t *testing.T) {
	sources := imagetest.RefusalsIn(t, "extract.go", "extract_at.go", "unpack.go", "link.go")
	if len(sources) < 20 {
		t.Fatalf("%d refusals found", len(sources))
	}
	var rows []imagetest.Refusal
	for _, r := range refusalRows(t) {
		rows = append(rows, imagetest.Refusal(r))
	}
	imagetest.CheckRefusals(t, rows, sources, unreached)
}

// TestMadeUpDirectoriesAreBounded checks that the search for implied directories ends with the
// caller's context, and after too many lookups for one image.
func TestMadeUpDirectoriesAreBounded(t *testing.T) {
	store := NewStore(t.TempDir(), func(string) {})
	tarball := imagetest.Tar(t, imagetest.Dir("a", 0o700))
	u := NewUnpacker(store, Limits{}.WithDefaults(), &progress.Clock{})
	src := Source{Reader: bytes.NewReader(tarball), Size: int64(len(tarball))}
	l, err := u.Unpack(t.Context(), src, digest.FromBytes(tarball), nil, &progress.Item{})
	imagetest.Must(t, err)
	below := []*Layer{l}
	if fixes, err := u.fixesFor(t.Context(), []string{"a", "b"}, below); err != nil || len(fixes) != 1 || fixes[0].Name != "a" {
		t.Error(fixes, err)
	}
	u.looks = maxLooks - 3
	if _, err := u.fixesFor(t.Context(), []string{"a", "b"}, below); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
	u.looks = 0
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.fixesFor(ctx, []string{"a"}, below); !errdefs.IsCanceled(err) {
		t.Error(err)
	}
}
