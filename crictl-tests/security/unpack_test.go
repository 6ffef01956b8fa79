package security

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// escapes pulls every hostile image of the kinds, and runs those that are taken: neither the pull nor the container touches the
// canary, and the container cannot read it. It returns how many were taken.
func escapes(d *harness.Daemon, row string, kinds ...string) (taken int) {
	d.Helper()
	p := d.RunPod()
	host := plantCanary(d)
	found := 0
	for name, layers := range fixture.Escapes(host.dir) {
		if kind, _, _ := strings.Cut(name, "-"); !slicesHas(kinds, name) && !slicesHas(kinds, kind) {
			continue
		}
		found++
		img, err := fixture.Custom(v1.Config{}, layers...)
		d.Must(err)
		id, err := d.TryHostile(row+":"+name, img)
		host.wantUntouched("pull of " + name)
		if err != nil {
			if !slices.Contains([]codes.Code{codes.InvalidArgument, codes.ResourceExhausted}, status.Code(err)) {
				d.Errorf("%s: %v", name, err)
			}
			d.Logf("%s: refused: %v", name, err)
			continue
		}
		taken++
		c := p.Create(harness.OfImage(id), harness.Shell("find / -xdev -type f \\( -name secret -o -name stolen -o -name planted \\) -exec cat {} + ; cat /out/secret /out/planted /etc/passwd; echo x >> /stolen; echo x >> /out/secret"))
		if c.TryStart() == nil {
			c.WaitExit()
			if got := harness.TextOf(c.FinalLog(), "stdout"); strings.Contains(got, canarySecret) {
				d.Errorf("%s: the container reads the host: %q", name, got)
			}
		}
		c.Remove()
		host.wantUntouched("container of " + name)
	}
	if found < len(kinds) {
		d.Errorf("%d hostile images of the kinds %v", found, kinds)
	}
	return taken
}

func slicesHas(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// TestSEC56Paths: no name of a layer leads out of the image's root, through no link that the layer or one below it has made.
func TestSEC56Paths(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	if escapes(d, "sec56", "dotdot", "absolute", "symlink", "dir", "file") == 0 {
		t.Error("all were refused: links as such are legal")
	}
}

// TestSEC57Links: a hard link names a file of its own image.
func TestSEC57Links(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	escapes(d, "sec57", "hardlink", "many")
}

// TestSEC58Root: the root of a layer is a folder, whatever its first entry says.
func TestSEC58Root(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	host := plantCanary(d)
	for i, entry := range []fixture.Entry{
		harness.SymlinkEntry("./", host.dir), harness.SymlinkEntry(".", host.dir), harness.SymlinkEntry("/", host.dir), harness.SymlinkEntry("a/..", host.dir),
		{Name: ".", Type: tar.TypeLink, Link: host.path("secret")}, {Name: ".", Type: tar.TypeReg, Data: []byte("x")}, {Name: "a/..", Type: tar.TypeFifo},
	} {
		img, err := fixture.Custom(v1.Config{}, []fixture.Entry{entry, {Name: "planted", Data: []byte("x")}})
		d.Must(err)
		id, err := d.TryHostile(fmt.Sprintf("sec58:%d", i), img)
		if err != nil {
			t.Errorf("root as %q of type %q: %v", entry.Name, entry.Type, err)
			continue
		}
		layers, err := filepath.Glob(filepath.Join(d.Root, "layers", "[0-9]*", "fs"))
		d.Must(err)
		for _, l := range layers {
			if info, err := os.Lstat(l); err != nil || !info.IsDir() {
				t.Errorf("root as %q of type %q: %v, %v", entry.Name, entry.Type, info, err)
			}
		}
		d.Must(d.RemoveImage(id))
		host.wantUntouched("root " + entry.Name)
	}
}

// TestSEC59Whiteouts: a whiteout hides names of its own folder in the layers below, and nothing else.
func TestSEC59Whiteouts(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	if escapes(d, "sec59", "whiteout") == 0 {
		t.Error("all were refused: whiteouts as such are legal")
	}
	for name, refused := range map[string]bool{".wh.": true, ".wh..": true, ".wh...": true, "a/.wh...": true, ".wh.a/b": false, ".wh.../b": false, ".wh.none": false} {
		img, err := fixture.Custom(v1.Config{}, []fixture.Entry{{Name: name}})
		d.Must(err)
		_, err = d.TryHostile("sec59:x"+fmt.Sprintf("%x", name), img)
		if refused && status.Code(err) != codes.InvalidArgument || !refused && err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// rawLayer is a layer of these very bytes.
func rawLayer(t testing.TB, blob []byte, c fixture.Compression) fixture.Layer {
	t.Helper()
	sum, _, err := v1.SHA256(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	return fixture.Layer{Blob: blob, Digest: sum, DiffID: sum, Compression: c}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestSEC61BrokenStreams: what ends too early, or says that it needs a gigabyte, is an error and costs neither memory nor a goroutine.
func TestSEC61BrokenStreams(t *testing.T) {
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	archive := mustTar(t, fixture.Entry{Name: "f", Data: bytes.Repeat([]byte("content "), 100_000)})
	encoder, err := zstd.NewWriter(nil)
	d.Must(err)
	packed := encoder.EncodeAll(archive, nil)
	pax := func(size string) []byte { // a record that says how long it is, and is not
		h := make([]byte, 1024)
		copy(h, "pax")
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], size)
		copy(h[136:], "00000000000\x00        x")
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, b := range h[:512] {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		copy(h[512:], "1073741823 path=")
		return h
	}
	// A window of 2 GiB: magic, no single segment, a window descriptor of exponent 21, one raw last block.
	window := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x10, 0x00}, make([]byte, 512)...)
	for name, layer := range map[string]fixture.Layer{
		"gzip without an end":     rawLayer(t, gzipped(t, archive)[:1000], fixture.Gzip),
		"zstd without an end":     rawLayer(t, packed[:len(packed)/2], fixture.Zstd),
		"tar without an end":      rawLayer(t, archive[:10_000], fixture.None),
		"nothing":                 rawLayer(t, []byte{}, fixture.Gzip),
		"noise":                   rawLayer(t, bytes.Repeat([]byte("noise"), 1000), fixture.Gzip),
		"xz":                      rawLayer(t, append([]byte("\xfd7zXZ\x00\x00\x04"), make([]byte, 1000)...), fixture.Gzip),
		"pax record of a GiB":     rawLayer(t, pax("07777777777\x00"), fixture.None),
		"pax record of a GiB, gz": rawLayer(t, gzipped(t, pax("07777777777\x00")), fixture.Gzip),
		"window of 2 GiB":         rawLayer(t, window, fixture.Zstd),
		"noise behind gzip":       rawLayer(t, append(gzipped(t, archive), "garbage"...), fixture.Gzip),
	} {
		img, err := fixture.FromLayers(v1.Config{}, nil, layer)
		d.Must(err)
		var pulled error
		grown := d.PeakOf(func() { _, pulled = d.TryHostile("sec61:x"+fmt.Sprintf("%x", name), img) })
		if !slices.Contains([]codes.Code{codes.InvalidArgument, codes.DataLoss, codes.ResourceExhausted, codes.Unimplemented}, status.Code(pulled)) {
			t.Errorf("%s: %v", name, pulled)
		}
		if grown > 32<<20 {
			t.Errorf("%s: the daemon grew by %d MiB", name, grown>>20)
		}
	}
	if list := d.ListImages(); len(list) > 0 {
		t.Errorf("images: %v", list)
	}
	if left := unpacked(t, d); len(left) > 0 {
		t.Errorf("layers that nobody has: %v", left)
	}
}

// unpacked lists the folders of layers.
func unpacked(t testing.TB, d *harness.Daemon) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(d.Root, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if e.Name() != "empty" && e.Name() != "none" {
			all = append(all, e.Name())
		}
	}
	return all
}

// TestSEC62Bombs: what is packed small and would fill the disk is refused, and so is what is larger than allowed. Nothing of it stays, and the
// daemon stays small.
func TestSEC62Bombs(t *testing.T) {
	for name, limit := range map[string]string{"disk": "disk_reserve = 99", "size": `layer_size_max = "512Mi"`} {
		t.Run(name, func(t *testing.T) { bombsRefused(t, limit) })
	}
}

func bombsRefused(t *testing.T, limit string) {
	d := harness.NewDaemon(t, harness.KeepsBlobs, harness.WithImages(limit))
	before := d.Ledger()
	for _, name := range []string{"hostile:bomb", "hostile:bomb-zstd"} {
		var err error
		grown := d.PeakOf(func() { _, err = d.TryPull(d.Ref(name), nil) })
		harness.WantCode(t, err, codes.ResourceExhausted)
		if grown > 64<<20 {
			t.Errorf("%s: the daemon grew by %d MiB", name, grown>>20)
		}
	}
	if list := d.ListImages(); len(list) > 0 {
		t.Errorf("images: %v", list)
	}
	d.WantFlat(before)
}

// TestSEC63Specials: a layer's devices open nothing, its attributes give overlayfs no orders, and its setuid files are out of reach.
func TestSEC63Specials(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	escapes(d, "sec63", "device", "overlay", "setuid", "fifo")
	p := d.RunPod()
	secret := func(names ...string) map[string]string {
		m := map[string]string{}
		for _, n := range names {
			m[n] = "/etc"
		}
		return m
	}
	id := d.Hostile("sec63:attributes", v1.Config{}, []fixture.Entry{
		{Name: "r/", Xattrs: secret("trusted.overlay.redirect", "user.overlay.redirect")},
		{Name: "m", Data: []byte("own\n"), Xattrs: secret("trusted.overlay.metacopy", "trusted.overlay.origin", "security.selinux", "security.ima", "trusted.x", "user.ok")},
		{Name: "o/", Xattrs: map[string]string{"trusted.overlay.opaque": "y"}},
		{Name: "bin/su", Mode: 0o4755, Data: []byte("#!/bin/sh\n")},
	})
	if got := p.OutputOf(harness.OfImage(id), harness.Shell("ls /r; cat /m")); got != "own\n" {
		t.Errorf("the container sees %q", got)
	}
	for _, folder := range []string{"layers", "containers", "content", "images"} {
		info, err := os.Stat(filepath.Join(d.Root, folder))
		d.Must(err)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %o: setuid files of images are within reach", folder, info.Mode().Perm())
		}
	}
	for _, path := range filesNamed(t, filepath.Join(d.Root, "layers"), "m") {
		for _, name := range attributes(t, path) {
			if name != "user.ok" {
				t.Errorf("%s kept the attribute %s", path, name)
			}
		}
	}
	many := map[string]string{}
	for i := range 20_000 {
		many[fmt.Sprintf("user.n%d", i)] = strings.Repeat("v", 100)
	}
	img, err := fixture.Custom(v1.Config{}, []fixture.Entry{{Name: "x", Xattrs: many}})
	if err == nil {
		_, err = d.TryHostile("sec63:many", img)
		if !slices.Contains([]codes.Code{codes.ResourceExhausted, codes.InvalidArgument}, status.Code(err)) {
			t.Errorf("twenty thousand attributes: %v", err)
		}
	} else {
		t.Logf("no such archive can be written: %v", err)
	}
}

func attributes(t testing.TB, path string) []string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
}

// TestSEC60InProcess: decompression is in process. Nothing that an image calls a decompressor runs, on the host or anywhere.
func TestSEC60InProcess(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	host := plantCanary(d)
	var tools []fixture.Entry
	for _, name := range []string{"unpigz", "pigz", "gzip", "zstd", "unzstd", "xz", "tar"} {
		tools = append(tools, fixture.Entry{Name: "usr/bin/" + name, Mode: 0o755, Data: []byte("#!/bin/sh\ntouch " + host.path("run") + "\n")})
	}
	id := d.Hostile("sec60:1", v1.Config{}, tools, []fixture.Entry{{Name: "after", Data: []byte("unpacked\n")}})
	if got := d.RunPod().OutputOf(harness.OfImage(id), harness.Shell("cat /after")); got != "unpacked\n" {
		t.Errorf("the layer after them holds %q", got)
	}
	host.wantUntouched("decompressors of an image")
	for _, file := range sources(t, "../../imageservice") {
		// These run programs of the node, for credentials and for signatures. They get no byte of a layer.
		runsPrograms := strings.Contains(file, "/imageservice/program/") || strings.HasSuffix(file, "/imageservice/keyring/helper.go")
		if strings.Contains(harness.HostFile(t, file), `"os/exec"`) && !runsPrograms {
			t.Errorf("%s can run programs", file)
		}
	}
}
