package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tarOf returns an archive of files, in this order.
func tarOf(files ...[2]string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}
		if target, ok := bytes.CutPrefix([]byte(f[1]), []byte("-> ")); ok {
			h.Typeflag, h.Linkname, h.Size, f[1] = tar.TypeSymlink, string(target), 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if _, err := io.WriteString(w, f[1]); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// layout returns an OCI layout whose index is what change makes of a right one.
func layout(change func(*ocispec.Index)) []byte {
	config := `{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}`
	blob := func(content string) (ocispec.Descriptor, [2]string) {
		d := digest.FromString(content)
		return ocispec.Descriptor{Digest: d, Size: int64(len(content))}, [2]string{"blobs/sha256/" + d.Encoded(), content}
	}
	c, configFile := blob(config)
	c.MediaType = ocispec.MediaTypeImageConfig
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: c, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	raw, _ := json.Marshal(m)
	d, manifestFile := blob(string(raw))
	d.MediaType = m.MediaType
	d.Annotations = map[string]string{annotationName: "docker.io/library/app:1", ocispec.AnnotationRefName: "1"}
	i := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}}
	i.SchemaVersion = 2
	change(&i)
	index, _ := json.Marshal(i)
	return tarOf([2]string{"oci-layout", `{"imageLayoutVersion": "1.0.0"}`}, [2]string{"index.json", string(index)}, manifestFile, configFile)
}

// archives are some right and some wrong ones.
func archives() map[string][]byte {
	const docker = `[{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar", "l/layer.tar"]}]`
	return map[string][]byte{
		"layout":                layout(func(*ocispec.Index) {}),
		"no name":               layout(func(i *ocispec.Index) { i.Manifests[0].Annotations = nil }),
		"no such blob":          layout(func(i *ocispec.Index) { i.Manifests[0].Digest = digest.FromString("nothing") }),
		"a digest that is none": layout(func(i *ocispec.Index) { i.Manifests[0].Digest = "sha256:../../index.json" }),
		"docker":                tarOf([2]string{"manifest.json", docker}, [2]string{"c.json", "{}"}, [2]string{"l/layer.tar", "layer"}),
		"docker, links":         tarOf([2]string{"manifest.json", docker}, [2]string{"c.json", "{}"}, [2]string{"l/layer.tar", "-> ../x"}, [2]string{"x", "layer"}),
		"a link to itself":      tarOf([2]string{"manifest.json", "-> manifest.json"}),
		"a folder":              tarOf([2]string{"index.json/", ""}),
		"nothing":               nil,
	}
}

// check opens an archive: the error is one of the documented ones, and of an image that was found each
// document is there.
func check(t *testing.T, content []byte) {
	t.Helper()
	a, err := Open(t.Context(), bytes.NewReader(content), t.TempDir(), 1<<20)
	if err != nil {
		if !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) && !errdefs.IsNotImplemented(err) {
			t.Errorf("an error of no class: %v", err)
		}
		return
	}
	defer a.Close()
	if len(a.Images()) == 0 {
		t.Error("no image, and no error")
	}
	for _, i := range a.Images() {
		req, err := http.NewRequest(http.MethodGet, "https://archive/v2/app/manifests/latest", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := a.Transport(i).RoundTrip(req)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("the document of %s: %v, %v", i.Root, answer, err)
		}
		if b, err := io.ReadAll(answer.Body); err != nil || int64(len(b)) != answer.ContentLength {
			t.Errorf("%d bytes of %d: %v", len(b), answer.ContentLength, err)
		}
	}
}

// TestManyNames: a compressed archive may be small and its names large.
func TestManyNames(t *testing.T) {
	var files [][2]string
	for i := range 40 {
		files = append(files, [2]string{fmt.Sprint(i) + strings.Repeat("/n", 500<<10), ""})
	}
	_, err := Open(t.Context(), bytes.NewReader(tarOf(files...)), t.TempDir(), 1<<30)
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "names") {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	for name, content := range archives() {
		t.Run(name, func(t *testing.T) { check(t, content) })
	}
}

// FuzzOpen looks for an archive that makes Open panic, or return another error than it says.
func FuzzOpen(f *testing.F) {
	for _, content := range archives() {
		f.Add(content)
	}
	f.Fuzz(check)
}
