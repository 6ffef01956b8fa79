package imageservice

import (
	"math"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/imageservice/pull"
)

// This file lists what is refused in the documents of an image, and what containerd does with it.
// The rule is that cribox accepts what containerd accepts, unless that is dangerous.
// docs/refusals.md lists, for users, what containerd runs and this package refuses.

type refusalRow imagetest.Refusal // for rows without field names

func ofDocument(mediaType, text string) func(*testing.T) error {
	return func(*testing.T) error {
		_, err := manifest.Decode([]byte(strings.ReplaceAll(text, "'", `"`)), mediaType)
		return err
	}
}

// ofManifest checks a manifest with one layer that is valid except for the change.
func ofManifest(change func(m *ocispec.Manifest, l *layers.Limits)) func(*testing.T) error {
	return func(*testing.T) error {
		fine := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("x"), Size: 1}
		layer := fine
		layer.MediaType = ocispec.MediaTypeImageLayer
		m, l := &ocispec.Manifest{Config: fine, Layers: []ocispec.Descriptor{layer}}, layers.Limits{}.WithDefaults()
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

// ofPull pulls the image that build adds to a registry.
func ofPull(build func(t *testing.T, r *imagetest.Registry)) func(*testing.T) error {
	return func(t *testing.T) error {
		r := imagetest.NewRegistry(t)
		build(t, r)
		_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), nil)
		return err
	}
}

func refusalRows(t *testing.T) []refusalRow {
	man, idx := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	return []refusalRow{
		{"a key twice", ofDocument(man, `{'config':{},'config':{}}`), "not an unambiguous JSON object", imagetest.Runs, imagetest.Ambiguous},
		{"a key in another case", ofDocument(man, `{'Config':{}}`), "not an unambiguous JSON object", imagetest.Runs, imagetest.Ambiguous},
		{"no JSON", ofDocument(man, `hello`), "not an unambiguous JSON object", imagetest.Same, ""},
		{"mediaType is a number", ofDocument(man, `{'mediaType':1,'config':{'size':1}}`), "mediaType that is not a string", imagetest.Same, ""},
		{"a manifest that calls itself an index", ofDocument(man, `{'mediaType':'`+idx+`','manifests':[{}]}`), "but its mediaType is", imagetest.Same, ""},
		{"schema 1", ofDocument("application/vnd.docker.distribution.manifest.v1+prettyjws", `{'schemaVersion':1}`), "manifest schema 1", imagetest.Same, ""},
		{"schema 1 by its number", ofDocument(man, `{'schemaVersion':1,'config':{'size':1}}`), "manifest schema 1", imagetest.Late, ""},
		{"manifest and index at once", ofDocument(man, `{'config':{'size':1},'manifests':[{}]}`), "ambiguous document", imagetest.Same, ""},
		{"index without manifests", ofDocument(idx, `{'schemaVersion':2}`), "index without manifests", imagetest.Same, ""},
		{"manifest without config", ofDocument(man, `{'schemaVersion':2}`), "manifest without config", imagetest.Same, ""},
		{"a document of another kind", ofDocument("application/x", `{'config':{'size':1}}`), "is not supported", imagetest.Same, ""},
		{"layers that are no list", ofDocument(man, `{'config':{'size':1},'layers':{'a':1}}`), "cannot decode the manifest", imagetest.Same, ""},
		{"a document of a million values", ofDocument(man, `{'x':[`+strings.Repeat("1,", 1e6)+`1]}`), "document of more than", imagetest.Waits, imagetest.Amplifies},
		{"an index of 1025 entries", ofIndex(make([]ocispec.Descriptor, manifest.MaxEntries+1)...), "index with 1025 entries", imagetest.Waits, imagetest.Amplifies},
		{"an index for other machines", ofIndex(platform(ocispec.Descriptor{MediaType: man}, "windows", "amd64", "")), "available: windows/amd64", imagetest.Same, ""},
		{"indexes in indexes", ofPull(func(t *testing.T, r *imagetest.Registry) {
			_, d := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f")))}, nil)
			for range pull.MaxIndexDepth + 2 {
				d = r.PutManifest("1", idx, index(d))
			}
		}), "indexes nested more than", imagetest.Waits, imagetest.Amplifies},
		{"an index without platforms for other machines", ofPull(func(t *testing.T, r *imagetest.Registry) {
			_, d := r.Build("", nil, func(_ *ocispec.Manifest, c *ocispec.Image) { c.OS = "windows" })
			r.PutManifest("1", idx, index(d))
		}), "no image for", imagetest.Same, ""},
		{"a digest that is a path", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Layers[0].Digest = "sha256:../x" }), "descriptor: ", imagetest.Same, ""},
		{"a sha512 digest", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Layers[0].Digest = digest.SHA512.FromString("") }), "descriptor: ", imagetest.Runs, imagetest.NotYet},
		{"a negative size", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Layers[0].Size = -1 }), "has size -1", imagetest.Same, ""},
		{"a layer larger than an image may be", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Layers[0].Size = math.MaxInt64 }), "the limit is", imagetest.Waits, imagetest.Amplifies},
		{"a config of 5 MiB", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Config.Size = 5 << 20 }), "the limit is", imagetest.Waits, imagetest.Amplifies},
		{"a chart", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) {
			m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}),
			"not a container image", imagetest.Late, ""},
		{"501 layers", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Layers = make([]ocispec.Descriptor, 501) }), "image with 501 layers", imagetest.Late, ""},
		{"layers that are too much together", ofManifest(func(m *ocispec.Manifest, l *layers.Limits) { l.ImageBytes, m.Layers = 1, append(m.Layers, m.Layers[0]) }),
			"compressed bytes (image_size_max)", imagetest.Waits, imagetest.Amplifies},
		{"an encrypted layer", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Layers[0].MediaType += "+encrypted" }), "is encrypted", imagetest.Same, ""},
		{"a layer that is no tar", ofManifest(func(m *ocispec.Manifest, _ *layers.Limits) { m.Layers[0].MediaType = "text/html" }), "is not supported", imagetest.Same, ""},
		{"a config with an ENTRYPOINT that is no list", ofConfig(`{'config':{'Entrypoint':'sh'}}`), "cannot decode the image config", imagetest.Same, ""},
		{"more layers than diff ids", ofConfig(`{'rootfs':{'type':'layers'}}`), "lists 0 diff ids, but its manifest lists 1 layers", imagetest.Same, ""},
		{"a diff id of md5", ofConfig(`{'rootfs':{'diff_ids':['md5:d41d8cd98f00b204e9800998ecf8427e']}}`), "image config, diff id", imagetest.Same, ""},
	}
}

// TestEveryRefusal runs the rows, and requires one for each refusal in the source.
func TestEveryRefusal(t *testing.T) {
	sources := imagetest.RefusalsIn(t, "manifest/manifest.go", "pull/resolve.go")
	if len(sources) < 20 {
		t.Fatalf("%d refusals found", len(sources))
	}
	var rows []imagetest.Refusal
	for _, r := range refusalRows(t) {
		rows = append(rows, imagetest.Refusal(r))
	}
	imagetest.CheckRefusals(t, rows, sources, nil)
}
