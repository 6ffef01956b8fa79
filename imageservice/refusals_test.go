package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// What of an image's documents and layers is refused, and what containerd does with it. The rule: what containerd runs, runs, unless it is
// dangerous. docs/refusals.md tells users of what containerd runs and this package does not.

// What containerd does with an input.
const (
	same  = "refuses it too"
	late  = "pulls it, and no container of it starts"
	runs  = "runs it"
	waits = "runs it, whatever it takes of the node"
)

// Why an input is refused that containerd runs.
const (
	ambiguous = "it means one thing to one reader and another to the next: a scanner may have seen another image (CVE-2021-41190)"
	amplifies = "a small image would take much of the node's memory or disk"
	wraps     = "the number would become another one"
	notYet    = "nobody was seen to use it; the store of blobs and the image's id are sha256"
)

type refusalRow struct {
	name       string
	try        func(t *testing.T) error
	want       string // in the error
	containerd string
	why        string // for what containerd runs
}

func ofDocument(mediaType, text string) func(*testing.T) error {
	return func(*testing.T) error {
		_, err := decodeDocument([]byte(strings.ReplaceAll(text, "'", `"`)), mediaType)
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
		return checkManifest(m, l)
	}
}

func ofConfig(text string) func(*testing.T) error {
	return func(*testing.T) error {
		_, err := decodeConfig([]byte(strings.ReplaceAll(text, "'", `"`)), &ocispec.Manifest{Layers: make([]ocispec.Descriptor, 1)})
		return err
	}
}

func ofIndex(entries ...ocispec.Descriptor) func(*testing.T) error {
	return func(*testing.T) error {
		_, err := choose(&ocispec.Index{Manifests: entries}, platforms.Only(platforms.DefaultSpec()))
		return err
	}
}

func ofTar(entries ...any) func(*testing.T) error {
	return func(t *testing.T) error {
		y := newYard(t)
		_, err := y.unpack(tarOf(t, entries...))
		return err
	}
}

// ofMeter unpacks a file of so many letters, said to be packed to ten bytes, within limits.
func ofMeter(limits Limits, image int64) func(*testing.T) error {
	return func(t *testing.T) error {
		y := newYard(t)
		m := &meter{src: source{size: 10}, limits: limits.withDefaults(), image: &budget{most: image}}
		root, err := unix.Open(y.layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(root)
		_, err = extract(t.Context(), bytes.NewReader(tarOf(t, reg("f"), strings.Repeat("x", 1<<20))), root, caps{limits.withDefaults().Entries, 1 << 20, m})
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
func ofPull(build func(t *testing.T, r *registryServer)) func(*testing.T) error {
	return func(t *testing.T) error {
		r := newRegistry(t)
		build(t, r)
		_, err := newImages(t, nil).Pull(t.Context(), r.ref("app:1"), nil)
		return err
	}
}

func wideWindow(t *testing.T) []byte {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(256<<20))
	must(t, err)
	_, err = z.Write(bytes.Repeat([]byte("text"), 1<<20))
	must(t, errors.Join(err, z.Flush(), z.Close()))
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
		{"a key twice", ofDocument(man, `{'config':{},'config':{}}`), "not an unambiguous JSON object", runs, ambiguous},
		{"a key in another case", ofDocument(man, `{'Config':{}}`), "not an unambiguous JSON object", runs, ambiguous},
		{"no JSON", ofDocument(man, `hello`), "not an unambiguous JSON object", same, ""},
		{"mediaType is a number", ofDocument(man, `{'mediaType':1,'config':{'size':1}}`), "mediaType that is no string", same, ""},
		{"a manifest that calls itself an index", ofDocument(man, `{'mediaType':'`+idx+`','manifests':[{}]}`), "calls itself", same, ""},
		{"schema 1", ofDocument("application/vnd.docker.distribution.manifest.v1+prettyjws", `{'schemaVersion':1}`), "manifest schema 1", same, ""},
		{"schema 1 by its number", ofDocument(man, `{'schemaVersion':1,'config':{'size':1}}`), "manifest schema 1", late, ""},
		{"manifest and index at once", ofDocument(man, `{'config':{'size':1},'manifests':[{}]}`), "ambiguous document", same, ""},
		{"index without manifests", ofDocument(idx, `{'schemaVersion':2}`), "index without manifests", same, ""},
		{"manifest without config", ofDocument(man, `{'schemaVersion':2}`), "manifest without config", same, ""},
		{"a document of another kind", ofDocument("application/x", `{'config':{'size':1}}`), "is not supported", same, ""},
		{"layers that are no list", ofDocument(man, `{'config':{'size':1},'layers':{'a':1}}`), "manifest does not decode", same, ""},
		{"a document of a million values", ofDocument(man, `{'x':[`+strings.Repeat("1,", 1e6)+`1]}`), "document of more than", waits, amplifies},
		{"an index of 1025 entries", ofIndex(make([]ocispec.Descriptor, maxIndexEntries+1)...), "index with 1025 entries", waits, amplifies},
		{"an index for other machines", ofIndex(platform(ocispec.Descriptor{MediaType: man}, "windows", "amd64", "")), "there are: windows/amd64", same, ""},
		{"indexes in indexes", ofPull(func(t *testing.T, r *registryServer) {
			_, d := r.build("", []testLayer{gzipLayer(tarOf(t, reg("f")))}, nil)
			for range maxIndexDepth + 2 {
				d = r.putManifest("1", idx, index(d))
			}
		}), "indexes nested more than", waits, amplifies},
		{"an index without platforms for other machines", ofPull(func(t *testing.T, r *registryServer) {
			_, d := r.build("", nil, func(_ *ocispec.Manifest, c *ocispec.Image) { c.OS = "windows" })
			r.putManifest("1", idx, index(d))
		}), "no image for", same, ""},
		{"a digest that is a path", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Digest = "sha256:../x" }), "descriptor: ", same, ""},
		{"a sha512 digest", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Digest = digest.SHA512.FromString("") }), "descriptor: ", runs, notYet},
		{"a negative size", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Size = -1 }), "has size -1", same, ""},
		{"a layer larger than an image may be", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].Size = math.MaxInt64 }), "the most is", waits, amplifies},
		{"a config of 5 MiB", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Config.Size = 5 << 20 }), "the most is", waits, amplifies},
		{"a chart", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }),
			"not a container image", late, ""},
		{"501 layers", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers = make([]ocispec.Descriptor, 501) }), "image with 501 layers", late, ""},
		{"layers that are too much together", ofManifest(func(m *ocispec.Manifest, l *Limits) { l.ImageBytes, m.Layers = 1, append(m.Layers, m.Layers[0]) }),
			"compressed bytes (image_size_max)", waits, amplifies},
		{"an encrypted layer", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].MediaType += "+encrypted" }), "is encrypted", same, ""},
		{"a layer that is no tar", ofManifest(func(m *ocispec.Manifest, _ *Limits) { m.Layers[0].MediaType = "text/html" }), "is not supported", same, ""},
		{"a config with an ENTRYPOINT that is no list", ofConfig(`{'config':{'Entrypoint':'sh'}}`), "image config does not decode", same, ""},
		{"more layers than diff ids", ofConfig(`{'rootfs':{'type':'layers'}}`), "names 0 diff ids, its manifest 1 layers", same, ""},
		{"a diff id of md5", ofConfig(`{'rootfs':{'diff_ids':['md5:d41d8cd98f00b204e9800998ecf8427e']}}`), "image config, diff id", same, ""},

		{"half a tar", func(t *testing.T) error {
			_, err := newYard(t).unpack(tarOf(t, reg("f"), strings.Repeat("x", 2000))[:1000])
			return err
		}, "not a whole tar archive", same, ""},
		{"too many entries", func(t *testing.T) error { return (&extractor{most: caps{files: anything()}}).count() }, "(layer_files_max)", waits, amplifies},
		{"directories without end", func(t *testing.T) error {
			var all []any
			for range 4000 {
				all = append(all, dir(deep, 0o755))
			}
			_, err := newYard(t).unpack(tarOf(t, all...))
			return err
		}, "bytes of directories' names", waits, amplifies},
		{"an entry of an unknown type", ofTar(tar.Header{Name: "x", Typeflag: 'Z'}), "entry of unknown type", same, ""},
		{"a name that no path can be", ofTar(reg(strings.Repeat("a/", 2100) + "f")), "name of more than", same, ""},
		{"a name with a NUL", func(*testing.T) error { _, err := split(&tar.Header{Name: "a\x00b"}); return err }, "name with a NUL", same, ""},
		{"an owner of -1", ofTar(owner(1<<32 - 1)), "owner 4294967295", runs, wraps},
		{"an owner beyond 32 bits", func(*testing.T) error { _, err := split(&tar.Header{Name: "x", Uid: 1 << 33}); return err }, "owner 8589934592", runs, wraps},
		{"a hard link to nothing", ofTar(hard("h", "gone")), "hard link to", same, ""},
		{"a hard link below nothing", ofTar(hard("h", "gone/f")), "hard link to", same, ""},
		{"a capability that is none", ofTar(xattr("security.capability", "x")), "extended attribute", same, ""},
		{"an attribute larger than a filesystem takes", ofTar(xattr("user.x", strings.Repeat("x", 65<<10))), "extended attribute", same, ""},
		{"a whiteout of nothing", ofTar(reg(".wh.")), "whiteout of nothing", same, ""},
		{"folders deeper than a path, by links", ofTar(dir(deep, 0o755), link("l", deep), reg("l/"+deep+"/f")), "directories so deep", same, ""},
		{"links in a circle", ofTar(link("a", "a/b"), reg("a/x")), "parent \"a\"", same, ""},
		{"a long chain of links to what is not there", func(t *testing.T) error {
			var all []any
			for i := range maxLinks + 2 {
				all = append(all, link(fmt.Sprint("l", i), fmt.Sprintf("gone%d/../l%d", i, i+1)))
			}
			_, err := newYard(t).unpack(tarOf(t, append(all, reg("l0/x"))...))
			return err
		}, "too many links", same, ""},
		{"something below a file", ofTar(reg("f"), reg("f/g")), "parent \"f\"", same, ""},

		{"a layer larger than allowed", ofMeter(Limits{LayerBytes: 1000}, 1<<30), "(layer_size_max)", waits, amplifies},
		{"a small layer that fills the disk", ofMeter(Limits{RatioFloor: 1, Reserve: 101}, 1<<30), "(disk_reserve)", waits, amplifies},
		{"an image larger than allowed", ofMeter(Limits{}, 1000), "(image_size_max)", waits, amplifies},
		{"a layer that is not what its config says", ofPull(func(t *testing.T, r *registryServer) {
			l := gzipLayer(tarOf(t, reg("f")))
			l.diffID = digest.FromString("other")
			r.build("1", []testLayer{l}, nil)
		}), "the image config says", same, ""},
		{"a zstd window of 256 MiB", ofStream(wideWindow(t)), "wants too much memory", waits, amplifies},
		{"half a gzip", ofStream(gzipLayer(noise(t, 1000)).blob[:500]), "layer does not decompress", same, ""},
		{"made-up directories over many layers", func(t *testing.T) error {
			ft := &fetcher{looks: maxLooks}
			return ft.look(context.Background())
		}, "too many directories that the layers do not name", waits, amplifies},
	}
}

// unreached are refusals that no input is known to reach.
var unreached = []string{
	"layer x made the unpacker panic", // the decoders have no known fault
}

// refusalsIn collects the texts of all refusals in the source.
func refusalsIn(t *testing.T, files ...string) map[string]*regexp.Regexp {
	t.Helper()
	all := map[string]*regexp.Regexp{}
	set := token.NewFileSet()
	for _, name := range files {
		file, err := parser.ParseFile(set, name, nil, 0)
		must(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if f, ok := call.Fun.(*ast.Ident); !ok || f.Name != "refuse" {
				return true
			}
			format, err := strconv.Unquote(call.Args[1].(*ast.BasicLit).Value)
			must(t, err)
			text := regexp.MustCompile(`%[a-z]`).ReplaceAllString(regexp.QuoteMeta(format), ".*")
			all[set.Position(call.Pos()).String()] = regexp.MustCompile("(?s)" + strings.ReplaceAll(text, "%%", "%"))
			return true
		})
	}
	return all
}

// TestEveryRefusal runs the rows and demands one for each refusal in the source.
func TestEveryRefusal(t *testing.T) {
	sources := refusalsIn(t, "manifest.go", "resolve.go", "extract.go", "extract_at.go", "layers.go", "link.go")
	if len(sources) < 40 {
		t.Fatalf("%d refusals found", len(sources))
	}
	var said []string
	for _, r := range refusalRows(t) {
		err := r.try(t)
		if err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("%s: %v, want %q", r.name, err, r.want)
			continue
		}
		if taken := r.containerd == runs || r.containerd == waits; taken != (r.why != "") {
			t.Errorf("%s: containerd %s, and the reason is %q", r.name, r.containerd, r.why)
		}
		said = append(said, err.Error())
	}
	for at, text := range sources {
		if !slices.ContainsFunc(slices.Concat(said, unreached), text.MatchString) {
			t.Errorf("%s: no row has this refusal, %s. Does containerd run such an image? Then it should run, unless that is dangerous", at, text)
		}
	}
}
