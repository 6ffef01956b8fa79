package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/manifest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// What of an image's documents and layers is refused, and what containerd does with it. The rule: what containerd runs, runs, unless it is
// dangerous. docs/refusals.md tells users of what containerd runs and this package does not.

type refusalRow imagetest.Refusal // for rows without field names

func ofDocument(mediaType, text string) func(*testing.T) error {
	return func(*testing.T) error {
		_, err := manifest.Decode([]byte(strings.ReplaceAll(text, "'", `"`)), mediaType)
		return err
	}
}

// ofManifest checks a manifest of one layer that is fine but for the change.
func ofManifest(change func(m *ocispec.Manifest, l *Limits)) func(*testing.T) error {
	return func(*testing.T) error {
		fine := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("x"), Size: 1}
		layer := fine
		layer.MediaType = ocispec.MediaTypeImageLayer
		m, l := &ocispec.Manifest{Config: fine, Layers: []ocispec.Descriptor{layer}}, Limits{}.withDefaults()
		change(m, &l)
		return manifest.Check(m, l.Layers, l.ImageBytes)
	}
}

func ofConfig(text string) func(*testing.T) error {
	return func(*testing.T) error {
		_, err := manifest.DecodeConfig([]byte(strings.ReplaceAll(text, "'", `"`)), &ocispec.Manifest{Layers: make([]ocispec.Descriptor, 1)})
		return err
	}
}

func ofIndex(entries ...ocispec.Descriptor) func(*testing.T) error {
	return func(*testing.T) error {
		_, err := manifest.Choose(&ocispec.Index{Manifests: entries}, platforms.Only(platforms.DefaultSpec()))
		return err
	}
}

func ofTar(entries ...any) func(*testing.T) error {
	return func(t *testing.T) error {
		y := newYard(t)
		_, err := y.unpack(imagetest.Tar(t, entries...))
		return err
	}
}

// ofMeter unpacks a file of so many letters, said to be packed to ten bytes, within limits.
func ofMeter(limits Limits, image int64) func(*testing.T) error {
	return func(t *testing.T) error {
		y := newYard(t)
		m := &meter{src: source{size: 10}, limits: limits.withDefaults(), image: &budget{most: image}}
		root, err := unix.Open(y.layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		imagetest.Must(t, err)
		defer unix.Close(root)
		_, err = extract(t.Context(), bytes.NewReader(imagetest.Tar(t, imagetest.File("f"), strings.Repeat("x", 1<<20))), root, caps{limits.withDefaults().Entries, 1 << 20, m})
		return err
	}
}

func ofStream(blob []byte) func(*testing.T) error {
	return func(*testing.T) error {
		r, closer, err := decompress(source{Reader: bytes.NewReader(blob), size: int64(len(blob))})
		if err != nil {
			return err
		}
		defer closer()
		_, err = io.Copy(io.Discard, r)
		return err
	}
}

// ofPull pulls what build puts into a registry.
func ofPull(build func(t *testing.T, r *imagetest.Registry)) func(*testing.T) error {
	return func(t *testing.T) error {
		r := imagetest.NewRegistry(t)
		build(t, r)
		_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), nil)
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
	man, idx := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	owner := func(uid int) tar.Header { return tar.Header{Name: "x", Uid: uid, Format: tar.FormatPAX} }
	xattr := func(name, value string) tar.Header {
		return tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr." + name: value}}
	}
	deep := strings.TrimSuffix(strings.Repeat("a/", 1500), "/")
	return []refusalRow{
		{"a key twice", ofDocument(man, `{'config':{},'config':{}}`), "not an unambiguous JSON object", imagetest.Runs, imagetest.Ambiguous},
		{"a key in another case", ofDocument(man, `{'Config':{}}`), "not an unambiguous JSON object", imagetest.Runs, imagetest.Ambiguous},
		{"no JSON", ofDocument(man, `hello`), "not an unambiguous JSON object", imagetest.Same, ""},
		{"mediaType is a number", ofDocument(man, `{'mediaType':1,'config':{'size':1}}`), "mediaType that is no string", imagetest.Same, ""},
		{"a manifest that calls itself an index", ofDocument(man, `{'mediaType':'`+idx+`','manifests':[{}]}`), "calls itself", imagetest.Same, ""},
		{"schema 1", ofDocument("application/vnd.docker.distribution.manifest.v1+prettyjws", `{'schemaVersion':1}`), "manifest schema 1", imagetest.Same, ""},
		{"schema 1 by its number", ofDocument(man, `{'schemaVersion':1,'config':{'size':1}}`), "manifest schema 1", imagetest.Late, ""},
		{"manifest and index at once", ofDocument(man, `{'config':{'size':1},'manifests':[{}]}`), "ambiguous document", imagetest.Same, ""},
		{"index without manifests", ofDocument(idx, `{'schemaVersion':2}`), "index without manifests", imagetest.Same, ""},
		{"manifest without config", ofDocument(man, `{'schemaVersion':2}`), "manifest without config", imagetest.Same, ""},
		{"a document of another kind", ofDocument("application/x", `{'config':{'size':1}}`), "is not supported", imagetest.Same, ""},
		{"layers that are no list", ofDocument(man, `{'config':{'size':1},'layers':{'a':1}}`), "manifest does not decode", imagetest.Same, ""},
		{"a document of a million values", ofDocument(man, `{'x':[`+strings.Repeat("1,", 1e6)+`1]}`), "document of more than", imagetest.Waits, imagetest.Amplifies},
		{"an index of 1025 entries", ofIndex(make([]ocispec.Descriptor, manifest.MaxEntries+1)...), "index with 1025 entries", imagetest.Waits, imagetest.Amplifies},
		{"an index for other machines", ofIndex(platform(ocispec.Descriptor{MediaType: man}, "windows", "amd64", "")), "there are: windows/amd64", imagetest.Same, ""},
		{"indexes in indexes", ofPull(func(t *testing.T, r *imagetest.Registry) {
			_, d := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f")))}, nil)
			for range maxIndexDepth + 2 {
				d = r.PutManifest("1", idx, index(d))
			}
		}), "indexes nested more than", imagetest.Waits, imagetest.Amplifies},
		{"an index without platforms for other machines", ofPull(func(t *testing.T, r *imagetest.Registry) {
			_, d := r.Build("", nil, func(_ *ocispec.Manifest, c *ocispec.Image) { c.OS = "windows" })
			r.PutManifest("1", idx, index(d))
		}), "no image for", imagetest.Same, ""},
		{"a digest that is a path", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Digest = "sha256:../x" }), "descriptor: ", imagetest.Same, ""},
		{"a sha512 digest", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Digest = digest.SHA512.FromString("") }), "descriptor: ", imagetest.Runs, imagetest.NotYet},
		{"a negative size", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Size = -1 }), "has size -1", imagetest.Same, ""},
		{"a layer larger than an image may be", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Size = math.MaxInt64 }), "the most is", imagetest.Waits, imagetest.Amplifies},
		{"a config of 5 MiB", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Config.Size = 5 << 20 }), "the most is", imagetest.Waits, imagetest.Amplifies},
		{"a chart", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }),
			"not a container image", imagetest.Late, ""},
		{"501 layers", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers = make([]ocispec.Descriptor, 501) }), "image with 501 layers", imagetest.Late, ""},
		{"layers that are too much together", ofManifest(func(m *ocispec.Manifest, l *Limits) { l.ImageBytes, m.Layers = 1, append(m.Layers, m.Layers[0]) }),
			"compressed bytes (image_size_max)", imagetest.Waits, imagetest.Amplifies},
		{"an encrypted layer", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].MediaType += "+encrypted" }), "is encrypted", imagetest.Same, ""},
		{"a layer that is no tar", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].MediaType = "text/html" }), "is not supported", imagetest.Same, ""},
		{"a config with an ENTRYPOINT that is no list", ofConfig(`{'config':{'Entrypoint':'sh'}}`), "image config does not decode", imagetest.Same, ""},
		{"more layers than diff ids", ofConfig(`{'rootfs':{'type':'layers'}}`), "names 0 diff ids, its manifest 1 layers", imagetest.Same, ""},
		{"a diff id of md5", ofConfig(`{'rootfs':{'diff_ids':['md5:d41d8cd98f00b204e9800998ecf8427e']}}`), "image config, diff id", imagetest.Same, ""},

		{"half a tar", func(t *testing.T) error {
			_, err := newYard(t).unpack(imagetest.Tar(t, imagetest.File("f"), strings.Repeat("x", 2000))[:1000])
			return err
		}, "not a whole tar archive", imagetest.Same, ""},
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
		{"a whiteout of nothing", ofTar(imagetest.File(".wh.")), "whiteout of nothing", imagetest.Same, ""},
		{"folders deeper than a path, by links", ofTar(imagetest.Dir(deep, 0o755), imagetest.Link("l", deep), imagetest.File("l/"+deep+"/f")), "directories so deep", imagetest.Same, ""},
		{"links in a circle", ofTar(imagetest.Link("a", "a/b"), imagetest.File("a/x")), "parent \"a\"", imagetest.Same, ""},
		{"a long chain of links to what is not there", func(t *testing.T) error {
			var all []any
			for i := range maxLinks + 2 {
				all = append(all, imagetest.Link(fmt.Sprint("l", i), fmt.Sprintf("gone%d/../l%d", i, i+1)))
			}
			_, err := newYard(t).unpack(imagetest.Tar(t, append(all, imagetest.File("l0/x"))...))
			return err
		}, "too many links", imagetest.Same, ""},
		{"something below a file", ofTar(imagetest.File("f"), imagetest.File("f/g")), "parent \"f\"", imagetest.Same, ""},

		{"a layer larger than allowed", ofMeter(Limits{LayerBytes: 1000}, 1<<30), "(layer_size_max)", imagetest.Waits, imagetest.Amplifies},
		{"a small layer that fills the disk", ofMeter(Limits{RatioFloor: 1, Reserve: 101}, 1<<30), "(disk_reserve)", imagetest.Waits, imagetest.Amplifies},
		{"an image larger than allowed", ofMeter(Limits{}, 1000), "(image_size_max)", imagetest.Waits, imagetest.Amplifies},
		{"a layer that is not what its config says", ofPull(func(t *testing.T, r *imagetest.Registry) {
			l := imagetest.Gzip(imagetest.Tar(t, imagetest.File("f")))
			l.DiffID = digest.FromString("other")
			r.Build("1", []imagetest.Layer{l}, nil)
		}), "the image config says", imagetest.Same, ""},
		{"a zstd window of 256 MiB", ofStream(wideWindow(t)), "wants too much memory", imagetest.Waits, imagetest.Amplifies},
		{"half a gzip", ofStream(imagetest.Gzip(imagetest.Noise(t, 1000)).Blob[:500]), "layer does not decompress", imagetest.Same, ""},
		{"made-up directories over many layers", func(t *testing.T) error {
			u := &unpacker{looks: maxLooks}
			return u.look(context.Background())
		}, "too many directories that the layers do not name", imagetest.Waits, imagetest.Amplifies},
	}
}

// unreached are refusals that no input is known to reach.
var unreached = []string{
	"layer x made the unpacker panic", // the decoders have no known fault
}

// TestEveryRefusal runs the rows and demands one for each refusal in the source.
func TestEveryRefusal(t *testing.T) {
	sources := imagetest.RefusalsIn(t, "manifest/manifest.go", "resolve.go", "extract.go", "extract_at.go", "unpack.go", "link.go")
	if len(sources) < 40 {
		t.Fatalf("%d refusals found", len(sources))
	}
	var rows []imagetest.Refusal
	for _, r := range refusalRows(t) {
		rows = append(rows, imagetest.Refusal(r))
	}
	imagetest.CheckRefusals(t, rows, sources, unreached)
}
