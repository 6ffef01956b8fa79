package imageservice

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/manifest"
)

func index(entries ...ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
}

func platform(d ocispec.Descriptor, os, arch, variant string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
	return d
}

func TestIndexSelection(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	for _, mediaType := range []string{ocispec.MediaTypeImageIndex, manifest.DockerList} {
		t.Run(mediaType, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			id, right := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "right"))}, nil)
			_, wrong := r.Build("", nil, func(_ *ocispec.Manifest, c *ocispec.Image) { c.Architecture = other })
			list := index(platform(wrong, "linux", other, ""), platform(wrong, "windows", runtime.GOARCH, ""), platform(right, "linux", runtime.GOARCH, ""), platform(wrong, "unknown", "unknown", ""))
			list.MediaType = mediaType
			root := r.PutManifest("1", mediaType, list)
			images := newImages(t, nil)
			img := images.mustPull(t, r.Ref("app:1"))
			if img.ID != id || img.RepoDigests[0] != r.Ref("app@"+root.Digest.String()) {
				t.Errorf("%+v", img)
			}
			// The same image by the digest of the index: another name for local data, and no tag.
			again := images.mustPull(t, r.Ref("app:9@"+root.Digest.String()))
			if again.ID != id || len(again.RepoTags) != 1 || len(again.RepoDigests) != 1 {
				t.Errorf("%+v", again)
			}
			// A pull by digest alone adds no tag.
			fresh := newImages(t, nil).mustPull(t, r.Ref("app:1@"+root.Digest.String()))
			if fresh.ID != id || len(fresh.RepoTags) != 0 {
				t.Errorf("%+v", fresh)
			}
			nested := index(ocispec.Descriptor{MediaType: mediaType, Digest: root.Digest, Size: root.Size})
			r.PutManifest("nested", ocispec.MediaTypeImageIndex, nested)
			if img := images.mustPull(t, r.Ref("app:nested")); img.ID != id {
				t.Errorf("%+v", img)
			}
			deep := root
			for range 6 {
				deep = r.PutManifest("deep", ocispec.MediaTypeImageIndex, index(deep))
			}
			if _, err := images.Pull(t.Context(), r.Ref("app:deep"), nil); !errdefs.IsResourceExhausted(err) {
				t.Errorf("deep index: %v", err)
			}
			r.PutManifest("none", mediaType, func() ocispec.Index {
				l := index(platform(wrong, "linux", other, ""), platform(wrong, "windows", "amd64", ""))
				l.MediaType = mediaType
				return l
			}())
			_, err := images.Pull(t.Context(), r.Ref("app:none"), nil)
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/"+other+", windows/amd64") {
				t.Errorf("no platform: %v", err)
			}
			var many []ocispec.Descriptor
			for range manifest.MaxEntries + 1 {
				many = append(many, platform(right, "linux", runtime.GOARCH, ""))
			}
			r.PutManifest("many", ocispec.MediaTypeImageIndex, index(many...))
			if _, err := images.Pull(t.Context(), r.Ref("app:many"), nil); !errdefs.IsResourceExhausted(err) {
				t.Errorf("many entries: %v", err)
			}
			r.Build("foreign", nil, func(_ *ocispec.Manifest, c *ocispec.Image) { c.Architecture = other })
			if img, err := images.Pull(t.Context(), r.Ref("app:foreign"), nil); err != nil || img.Config.Architecture != other {
				t.Errorf("single manifest for another machine, which an emulator may run: %v", err)
			}
		})
	}
}

func TestRefusedManifests(t *testing.T) {
	layer := imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))
	edit := func(f func(m *ocispec.Manifest)) func(r *imagetest.Registry) {
		return func(r *imagetest.Registry) {
			r.Build("1", []imagetest.Layer{layer}, func(m *ocispec.Manifest, _ *ocispec.Image) { f(m) })
		}
	}
	raw := func(mediaType, doc string) func(r *imagetest.Registry) {
		return func(r *imagetest.Registry) {
			id, m := r.Build("good", []imagetest.Layer{layer}, nil)
			doc := strings.NewReplacer("CONFIG", fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1}`, ocispec.MediaTypeImageConfig, id),
				"ENTRY", fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, m.MediaType, m.Digest, m.Size), "'", `"`).Replace(doc)
			r.PutManifest("1", mediaType, []byte(doc))
		}
	}
	invalid, unsupported, exhausted := errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented, errdefs.ErrResourceExhausted
	man, idx := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	for name, c := range map[string]struct {
		put   func(r *imagetest.Registry)
		class error
	}{
		"schema 1":                {raw("application/vnd.docker.distribution.manifest.v1+prettyjws", `{'schemaVersion':1,'fsLayers':[],'history':[]}`), unsupported},
		"schema 1 in disguise":    {raw(man, `{'schemaVersion':2,'fsLayers':[{}],'config':CONFIG,'layers':[]}`), unsupported},
		"both as index":           {raw(idx, `{'schemaVersion':2,'manifests':[ENTRY],'config':CONFIG,'layers':[]}`), invalid},
		"both as manifest":        {raw(man, `{'schemaVersion':2,'manifests':[ENTRY],'config':CONFIG,'layers':[]}`), invalid},
		"index with layers":       {raw(idx, `{'schemaVersion':2,'manifests':[ENTRY],'layers':[ENTRY]}`), invalid},
		"manifest with Manifests": {raw(man, `{'schemaVersion':2,'Manifests':[ENTRY],'config':CONFIG,'layers':[]}`), invalid},
		"layers twice":            {raw(man, `{'schemaVersion':2,'config':CONFIG,'layers':[],'layers':[]}`), invalid},
		"mediaType differs":       {raw(man, `{'schemaVersion':2,'mediaType':'`+idx+`','manifests':[ENTRY]}`), invalid},
		"mediaType is a number":   {raw(man, `{'schemaVersion':2,'mediaType':1,'config':CONFIG,'layers':[]}`), invalid},
		"index is a manifest":     {raw(idx, `{'schemaVersion':2,'config':CONFIG,'layers':[]}`), invalid},
		"manifest is an index":    {raw(man, `{'schemaVersion':2,'manifests':[ENTRY]}`), invalid},
		"schemaVersion 1":         {raw(man, `{'schemaVersion':1,'config':CONFIG,'layers':[]}`), unsupported},
		"unknown type":            {raw("application/x", `{'schemaVersion':2,'config':CONFIG,'layers':[]}`), unsupported},
		"no json":                 {raw(man, `hello`), invalid},
		"an array":                {raw(man, `[]`), invalid},
		"two objects":             {raw(man, `{'schemaVersion':2,'config':CONFIG,'layers':[]}{}`), invalid},
		"deep json":               {raw(man, `{'schemaVersion':2,'x':`+strings.Repeat("[", 1e5)+strings.Repeat("]", 1e5)+`}`), invalid},
		"deeper json":             {raw(man, `{'schemaVersion':2,'x':`+strings.Repeat("[", 1e6)+strings.Repeat("]", 1e6)+`}`), exhausted},
		"a million layers":        {raw(man, `{'schemaVersion':2,'config':CONFIG,'layers':[`+strings.Repeat("{},", 1e6)+`{}]}`), exhausted},
		"commas in a string":      {raw(man, `{'schemaVersion':2,'config':CONFIG,'x':'`+strings.Repeat(`,[{\\\'`, 1e5)+`','y':'\\\\','layers':{}}`), invalid},
		"too large":               {raw(man, `{'schemaVersion':2,'x':'`+strings.Repeat("x", manifest.MaxBytes)+`'}`), exhausted},
		"encrypted layer":         {edit(func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }), unsupported},
		"artifact":                {edit(func(m *ocispec.Manifest) { m.Config = ocispec.DescriptorEmptyJSON }), unsupported},
		"digest with a path":      {edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../x" }), invalid},
		"digest empty":            {edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:" }), invalid},
		"digest md5":              {edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }), invalid},
		"digest sha512":           {edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.SHA512.FromString("") }), invalid},
		"digest upper case": {edit(func(m *ocispec.Manifest) {
			m.Layers[0].Digest = digest.Digest("sha256:" + strings.ToUpper(someHex))
		}), invalid},
		"digest of 10 KiB": {edit(func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.Digest("sha256:" + strings.Repeat("a", 10<<10)) }), invalid},
		"negative size":    {edit(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }), invalid},
		"huge layer":       {edit(func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 60 }), exhausted},
		"huge config": {edit(func(m *ocispec.Manifest) {
			m.Config = ocispec.Descriptor{MediaType: manifest.DockerConfig, Digest: digest.FromString("x"), Size: 2 << 30}
		}), exhausted},
		"more layers than overlay takes": {edit(func(m *ocispec.Manifest) { m.Layers = make([]ocispec.Descriptor, 501) }), exhausted},
		"fewer diff ids than layers":     {edit(func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }), invalid},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			c.put(r)
			images := newImages(t, nil)
			_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
			if !errors.Is(err, c.class) {
				t.Errorf("%.300v, want class %v", err, c.class)
			}
			if err != nil && len(err.Error()) > 2000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			images.wantNothing(t)
		})
	}
}

// TestOddManifests checks that unusual manifests are accepted if they are neither ambiguous nor
// dangerous.
func TestOddManifests(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	layer := imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))
	edit := func(f func(m *ocispec.Manifest, c *ocispec.Image)) func(r *imagetest.Registry) string {
		return func(r *imagetest.Registry) string {
			id, _ := r.Build("1", []imagetest.Layer{layer}, f)
			return id
		}
	}
	typed := func(mediaType string, change func(doc map[string]any)) func(r *imagetest.Registry) string {
		return func(r *imagetest.Registry) string {
			var doc map[string]any
			id, _ := r.Build("", []imagetest.Layer{layer}, func(m *ocispec.Manifest, _ *ocispec.Image) {
				b, err := json.Marshal(m)
				imagetest.Must(t, errors.Join(err, json.Unmarshal(b, &doc)))
			})
			doc["config"] = map[string]any{"mediaType": manifest.DockerConfig, "digest": id, "size": len(r.Blobs[digest.Digest(id)])}
			change(doc)
			b, err := json.Marshal(doc)
			imagetest.Must(t, err)
			r.PutManifest("1", mediaType, b)
			return id
		}
	}
	listed := func(list func(right, wrong ocispec.Descriptor) []ocispec.Descriptor) func(r *imagetest.Registry) string {
		return func(r *imagetest.Registry) string {
			id, right := r.Build("", []imagetest.Layer{layer}, nil)
			_, wrong := r.Build("", []imagetest.Layer{layer}, func(_ *ocispec.Manifest, c *ocispec.Image) { c.Architecture = other })
			r.PutManifest("1", ocispec.MediaTypeImageIndex, index(list(right, wrong)...))
			return id
		}
	}
	for name, put := range map[string]func(r *imagetest.Registry) string{
		"config without a type of its own": typed(manifest.DockerManifest, func(doc map[string]any) {
			doc["mediaType"], doc["config"].(map[string]any)["mediaType"] = manifest.DockerManifest, "application/octet-stream"
		}),
		"rootfs without a type":        edit(func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.Type = "" }),
		"no platform at all":           edit(func(_ *ocispec.Manifest, c *ocispec.Image) { c.Platform = ocispec.Platform{} }),
		"manifest for another machine": edit(func(_ *ocispec.Manifest, c *ocispec.Image) { c.Architecture = other }),
		"layer with urls":              edit(func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].URLs = []string{"http://127.0.0.1:1/x"} }),
		"foreign layer that is here": edit(func(m *ocispec.Manifest, _ *ocispec.Image) {
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}),
		"nondistributable layer that is here": edit(func(m *ocispec.Manifest, _ *ocispec.Image) {
			m.Layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		}),
		"no schemaVersion":       typed(ocispec.MediaTypeImageManifest, func(doc map[string]any) { delete(doc, "schemaVersion") }),
		"schemaVersion 0":        typed(ocispec.MediaTypeImageManifest, func(doc map[string]any) { doc["schemaVersion"] = 0 }),
		"Docker's served as OCI": typed(ocispec.MediaTypeImageManifest, func(doc map[string]any) { doc["mediaType"] = manifest.DockerManifest }),
		"OCI's served as Docker": typed(manifest.DockerManifest, func(doc map[string]any) { doc["mediaType"] = ocispec.MediaTypeImageManifest }),
		"served as json":         typed("application/json", func(doc map[string]any) { delete(doc, "mediaType") }),
		"served as text":         typed("text/plain; charset=utf-8", func(doc map[string]any) { delete(doc, "mediaType") }),
		"all fields written": typed(ocispec.MediaTypeImageManifest, func(doc map[string]any) {
			doc["manifests"], doc["fsLayers"] = nil, []any{}
		}),
		"index without platforms": listed(func(right, wrong ocispec.Descriptor) []ocispec.Descriptor {
			return []ocispec.Descriptor{wrong, right, wrong}
		}),
		"no platform in index and config": func(r *imagetest.Registry) string {
			id, m := r.Build("", []imagetest.Layer{layer}, func(_ *ocispec.Manifest, c *ocispec.Image) { c.Platform = ocispec.Platform{} })
			r.PutManifest("1", ocispec.MediaTypeImageIndex, index(m))
			return id
		},
		"index against the config": func(r *imagetest.Registry) string {
			id, wrong := r.Build("", []imagetest.Layer{layer}, func(_ *ocispec.Manifest, c *ocispec.Image) { c.Architecture = other })
			r.PutManifest("1", ocispec.MediaTypeImageIndex, index(platform(wrong, "linux", runtime.GOARCH, "")))
			return id
		},
		"index of an index without platforms": func(r *imagetest.Registry) string {
			id, right := r.Build("", []imagetest.Layer{layer}, nil)
			_, wrong := r.Build("", []imagetest.Layer{layer}, func(_ *ocispec.Manifest, c *ocispec.Image) { c.Architecture = other })
			foreign := r.PutManifest("a", ocispec.MediaTypeImageIndex, index(wrong))
			native := r.PutManifest("b", ocispec.MediaTypeImageIndex, index(wrong, right))
			r.PutManifest("1", ocispec.MediaTypeImageIndex, index(foreign, native))
			return id
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			id := put(r)
			images := newImages(t, nil)
			img, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
			if err != nil || img.ID != id {
				t.Fatalf("%s, %v, want %s", img.ID, err, id)
			}
			if r, err := images.catalog.Record(id); err != nil || len(r.Blobs) > 5 {
				t.Errorf("the record lists blobs of other images: %v, %v", r, err)
			}
		})
	}
}

// TestNoPlatformFits checks that all entries of an index without platforms are tried, and that the
// error lists the available platforms.
func TestNoPlatformFits(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	r := imagetest.NewRegistry(t)
	_, wrong := r.Build("", nil, func(_ *ocispec.Manifest, c *ocispec.Image) { c.Architecture = other })
	_, windows := r.Build("", nil, func(_ *ocispec.Manifest, c *ocispec.Image) { c.OS = "windows" })
	r.PutManifest("1", ocispec.MediaTypeImageIndex, index(wrong, windows))
	images := newImages(t, nil)
	_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "available: linux/"+other+", windows/"+runtime.GOARCH) {
		t.Error(err)
	}
	images.wantNothing(t)
}

// TestForeignLayerElsewhere checks that a layer is not downloaded from the urls of its descriptor,
// and that the error says why.
func TestForeignLayerElsewhere(t *testing.T) {
	r := imagetest.NewRegistry(t)
	layer := imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))
	r.Build("1", []imagetest.Layer{layer}, func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].URLs = []string{"http://127.0.0.1:1/x"} })
	delete(r.Blobs, digest.FromBytes(layer.Blob))
	_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "push it to the registry") {
		t.Error(err)
	}
}

// TestEndlessReplies checks endless response bodies for every kind of request.
func TestEndlessReplies(t *testing.T) {
	for _, where := range []string{"manifests/1", "manifests/sha256", "blobs/"} {
		t.Run(where, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			_, m := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
			r.PutManifest("1", ocispec.MediaTypeImageIndex, index(platform(m, "linux", runtime.GOARCH, "")))
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				if !strings.Contains(q.URL.Path, where) {
					return false
				}
				w.Header().Set("Content-Type", map[bool]string{true: ocispec.MediaTypeImageIndex, false: ocispec.MediaTypeImageManifest}[where == "manifests/1"])
				chunk := bytes.Repeat([]byte(" "), 1<<20)
				for i := range 4096 {
					if _, err := w.Write(chunk); err != nil {
						return true
					}
					if i == 64 {
						t.Error("it reads for ever")
						return true
					}
				}
				return true
			})
			images := newImages(t, nil)
			_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
			if !errdefs.IsResourceExhausted(err) && !errdefs.IsDataLoss(err) {
				t.Error(err)
			}
			images.wantNothing(t)
		})
	}
}

func FuzzDecodeDocument(f *testing.F) {
	good, _ := json.Marshal(index())
	f.Add(good, ocispec.MediaTypeImageIndex)
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`), "")
	f.Fuzz(func(t *testing.T, raw []byte, declared string) {
		d, err := manifest.Decode(raw, declared)
		if err == nil && (d.Index == nil) == (d.Manifest == nil) {
			t.Error("both or neither")
		}
	})
}
