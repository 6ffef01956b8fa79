package imageservice

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imagetest"
)

// saved is an image in the two formats of archives.
type saved struct {
	config, manifest []byte
	layers           []imagetest.Layer
}

func newSaved(t *testing.T, layers ...imagetest.Layer) saved {
	s := saved{layers: layers}
	image := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, digest.FromBytes(l.Tar))
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: l.MediaType, Digest: digest.FromBytes(l.Blob), Size: int64(len(l.Blob))})
	}
	image.RootFS.Type = "layers"
	s.config = encode(t, image)
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(s.config), Size: int64(len(s.config))}
	s.manifest = encode(t, m)
	return s
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	imagetest.Must(t, err)
	return b
}

func (s saved) id() string { return digest.FromBytes(s.config).String() }

// docker is the archive of docker save: the second layer is a link, as old versions write a layer
// that they have written before.
func (s saved) docker(t *testing.T, names ...string) []any {
	entries := []any{imagetest.File("c.json"), string(s.config)}
	var files []string
	for i, l := range s.layers {
		name := string(rune('a'+i)) + "/layer.tar"
		entries = append(entries, imagetest.File("real"+name), string(l.Blob), imagetest.Link(name, "../real"+name))
		files = append(files, name)
	}
	return append(entries, imagetest.File("manifest.json"), string(encode(t, []map[string]any{{"Config": "c.json", "RepoTags": names, "Layers": files}})))
}

// layout is the archive in the OCI layout, with these annotations of the image.
func (s saved) layout(t *testing.T, annotations map[string]string) []any {
	var entries []any
	blob := func(b []byte) {
		entries = append(entries, imagetest.File("blobs/sha256/"+digest.FromBytes(b).Encoded()), string(b))
	}
	blob(s.config)
	blob(s.manifest)
	for _, l := range s.layers {
		blob(l.Blob)
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(s.manifest), Size: int64(len(s.manifest)), Annotations: annotations,
	}}}
	return append(entries, imagetest.File("oci-layout"), `{"imageLayoutVersion":"1.0.0"}`, imagetest.File("index.json"), string(encode(t, index)))
}

// TestLoad loads archives as the tools of the field write them.
func TestLoad(t *testing.T) {
	image := newSaved(t, imagetest.Plain(imagetest.Tar(t, imagetest.File("f"), "below", imagetest.File("g"), "of below")),
		imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "above")))
	full := map[string]string{"io.containerd.image.name": "docker.io/library/app:1", ocispec.AnnotationRefName: "1"}
	both := append(image.layout(t, map[string]string{ocispec.AnnotationRefName: "1"}), image.docker(t, "app:1")...)
	for name, c := range map[string]struct {
		archive []byte
		as      string
		want    string
	}{
		"docker":           {imagetest.Tar(t, image.docker(t, "app:1")...), "", "docker.io/library/app:1"},
		"docker, two tags": {imagetest.Tar(t, image.docker(t, "app:1", "r.test/b:2")...), "", "docker.io/library/app:1 r.test/b:2"},
		"docker, gzip":     {imagetest.Gzip(imagetest.Tar(t, image.docker(t, "app:1")...)).Blob, "", "docker.io/library/app:1"},
		"docker, zstd":     {imagetest.Zstd(imagetest.Tar(t, image.docker(t, "app:1")...)).Blob, "", "docker.io/library/app:1"},
		"renamed":          {imagetest.Tar(t, image.docker(t, "app:1")...), "r.test/other:3", "r.test/other:3"},
		"layout":           {imagetest.Tar(t, image.layout(t, full)...), "", "docker.io/library/app:1"},
		"layout, skopeo":   {imagetest.Tar(t, image.layout(t, map[string]string{ocispec.AnnotationRefName: "app:1"})...), "", "docker.io/library/app:1"},
		"layout, no name":  {imagetest.Tar(t, image.layout(t, nil)...), "app:1", "docker.io/library/app:1"},
		"both formats":     {imagetest.Tar(t, both...), "", "docker.io/library/app:1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newImages(t, nil)
			got, err := s.Load(t.Context(), bytes.NewReader(c.archive), c.as)
			imagetest.Must(t, err)
			listed, err := s.Lookup(image.id())
			if err != nil || len(got) != 1 || got[0].ID != image.id() || strings.Join(listed.RepoTags, " ") != c.want {
				t.Fatalf("loaded %v, listed %v (%v), want %s of %s", got, listed, err, c.want, image.id())
			}
			in := mounted(t, s, image.id())
			imagetest.WantFile(t, in("f"), "above")
			imagetest.WantFile(t, in("g"), "of below")
			wantNoPartials(t, s)
		})
	}
}

// wantNoPartials checks that nothing of the archives is left in the folder of downloads.
func wantNoPartials(t *testing.T, s *Images) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(s.blobs.Dir, "ingest"))
	if err != nil || len(left) > 0 {
		t.Errorf("ingest has %v (%v)", left, err)
	}
}

// TestLoadRefuses: a bad archive gets an error of the right class, and leaves no image.
func TestLoadRefuses(t *testing.T) {
	image := newSaved(t, imagetest.Plain(imagetest.Tar(t, imagetest.File("f"), "x")))
	lying := newSaved(t, imagetest.Plain(imagetest.Tar(t, imagetest.File("f"), "x")))
	lying.layers[0].Blob = imagetest.Tar(t, imagetest.File("f"), "y") // in the archive, not in the config
	good := imagetest.Tar(t, image.docker(t, "app:1")...)
	two := append(image.docker(t, "app:1")[:4:4], imagetest.File("manifest.json"),
		`[{"Config":"c.json","RepoTags":["a:1"],"Layers":["reala/layer.tar"]},{"Config":"c.json","RepoTags":["b:1"],"Layers":["reala/layer.tar"]}]`)
	for name, c := range map[string]struct {
		archive []byte
		as      string
		is      func(error) bool
		says    string
	}{
		"nothing":         {nil, "", errdefs.IsInvalidArgument, "neither index.json nor manifest.json"},
		"text":            {[]byte(strings.Repeat("hello ", 1000)), "", errdefs.IsInvalidArgument, "not an archive of images"},
		"another tar":     {imagetest.Tar(t, imagetest.File("f"), "x"), "", errdefs.IsInvalidArgument, "neither index.json nor manifest.json"},
		"cut off":         {good[:len(good)-3000], "", errdefs.IsInvalidArgument, "not an archive"},
		"cut off, gzip":   {half(imagetest.Gzip(good).Blob), "", errdefs.IsInvalidArgument, "unexpected EOF"},
		"no name":         {imagetest.Tar(t, image.layout(t, nil)...), "", errdefs.IsInvalidArgument, "give it one"},
		"a tag alone":     {imagetest.Tar(t, image.layout(t, map[string]string{ocispec.AnnotationRefName: "latest"})...), "", errdefs.IsInvalidArgument, "give it one"},
		"a bad name":      {good, "app:a b", errdefs.IsInvalidArgument, "app:a b"},
		"one name of two": {imagetest.Tar(t, two...), "c:1", errdefs.IsInvalidArgument, "has 2 images"},
		"a wrong layer":   {imagetest.Tar(t, lying.docker(t, "app:1")...), "", errdefs.IsDataLoss, "layer unpacks to"},
		"a missing layer": {imagetest.Tar(t, append(image.docker(t, "app:1")[:2:2], image.docker(t, "app:1")[5:]...)...), "", errdefs.IsInvalidArgument, "no such file"},
		"a loop of links": {imagetest.Tar(t, imagetest.Link("index.json", "i"), imagetest.Link("i", "index.json")), "", errdefs.IsInvalidArgument, "neither"},
		"a missing blob":  {imagetest.Tar(t, image.layout(t, map[string]string{ocispec.AnnotationRefName: "app:1"})[2:]...), "", errdefs.IsNotFound, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newImages(t, nil)
			got, err := s.Load(t.Context(), bytes.NewReader(c.archive), c.as)
			if !c.is(err) || !strings.Contains(err.Error(), c.says) || len(got) > 0 || len(s.List()) > 0 {
				t.Errorf("loaded %v with error %v, want %q; listed: %v", got, err, c.says, s.List())
			}
		})
	}
}

func half(b []byte) []byte { return b[:len(b)/2] }

// TestLoadTooLarge: an archive that decompresses to more than an image may have ends early.
func TestLoadTooLarge(t *testing.T) {
	s := newImages(t, func(c *Config) { c.Limits.ImageBytes = 1 << 20 })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	imagetest.Must(t, w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: 8 << 20}))
	_, err := w.Write(make([]byte, 8<<20))
	imagetest.Must(t, err)
	imagetest.Must(t, w.Close())
	_, err = s.Load(t.Context(), bytes.NewReader(imagetest.Gzip(b.Bytes()).Blob), "")
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v", err)
	}
	wantNoPartials(t, s)
}

// TestExport writes an archive that another node loads, and finds a damaged blob.
func TestExport(t *testing.T) {
	r := imagetest.NewRegistry(t)
	layer := imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "content"))
	id, _ := r.Build("1", []imagetest.Layer{layer}, nil)
	from := newImages(t, nil)
	from.mustPull(t, r.Ref("app:1"))
	write := func(names ...string) ([]byte, error) {
		e, err := from.Export(names)
		if err != nil {
			return nil, err
		}
		defer e.Close()
		if err := from.Remove(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("an image that is being written can be removed: %v", err)
		}
		var b bytes.Buffer
		err = e.Write(t.Context(), &b)
		return b.Bytes(), err
	}
	for _, name := range []string{r.Ref("app:1"), id} {
		archive, err := write(name, id)
		imagetest.Must(t, err)
		to := newImages(t, nil)
		got, err := to.Load(t.Context(), bytes.NewReader(archive), "")
		if err != nil || len(got) != 1 || got[0].ID != id || strings.Join(got[0].RepoTags, " ") != r.Ref("app:1") {
			t.Errorf("%s: loaded %v, %v", name, got, err)
		}
		imagetest.WantFile(t, mounted(t, to, id)("f"), "content")
	}
	if _, err := write("no-such:1"); !errdefs.IsNotFound(err) {
		t.Errorf("an image that is not here: %v", err)
	}
	blob := from.blobs.Path(digest.FromBytes(layer.Blob))
	imagetest.Must(t, os.Chmod(blob, 0o600))
	imagetest.Must(t, os.WriteFile(blob, bytes.Repeat([]byte("x"), len(layer.Blob)), 0o600))
	if _, err := write(id); !errdefs.IsDataLoss(err) {
		t.Errorf("a damaged blob: %v", err)
	}
	imagetest.Must(t, from.Remove(t.Context(), id))
}

// TestPrune: held and pinned images stay.
func TestPrune(t *testing.T) {
	r := imagetest.NewRegistry(t)
	s := newImages(t, func(c *Config) { c.Pinned = []string{r.Ref("app:pinned")} })
	ids := map[string]string{}
	for _, tag := range []string{"held", "pinned", "free"} {
		r.Build(tag, []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), tag))}, nil)
		ids[tag] = s.mustPull(t, r.Ref("app:"+tag)).ID
	}
	imagetest.Must(t, s.Hold(ids["held"], "container"))
	for _, dry := range []bool{true, false} {
		got, err := s.Prune(t.Context(), dry)
		if err != nil || len(got) != 1 || got[0].ID != ids["free"] {
			t.Errorf("pruned %v, %v", got, err)
		}
		if left := len(s.List()); left != 3 && dry || left != 2 && !dry {
			t.Errorf("dry %t: %d images are left", dry, left)
		}
	}
}

// TestPin: a pin is there after a restart, and is apart from those of the configuration.
func TestPin(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	root, configured := filepath.Join(t.TempDir(), "root"), r.Ref("app:configured")
	open := func() *Images {
		return newImages(t, func(c *Config) { c.Root, c.Pinned = root, []string{configured} })
	}
	s := open()
	imagetest.Must(t, s.Pin(r.Ref("app:1")))
	imagetest.Must(t, s.Pin(r.Ref("app:1")))
	id := s.mustPull(t, r.Ref("app:1")).ID
	s.SetPinned([]string{configured})
	if s = open(); !s.List()[0].Pinned {
		t.Error("after a restart the image is not pinned")
	}
	imagetest.Must(t, s.Unpin(r.Ref("app:1")))
	if i, err := s.Lookup(id); err != nil || i.Pinned {
		t.Errorf("after unpin: %v, %v", i, err)
	}
	if err := s.Unpin(r.Ref("app:1")); !errdefs.IsNotFound(err) {
		t.Errorf("unpin again: %v", err)
	}
	if err := s.Unpin(configured); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("unpin of what is configured: %v", err)
	}
	if err := s.Pin("a b"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("pin of what is no name: %v", err)
	}
	imagetest.Must(t, os.WriteFile(filepath.Join(root, pinsFile), []byte("{"), 0o600))
	if s = open(); len(s.List()) != 1 {
		t.Error("a damaged file of pins costs images")
	}
}
