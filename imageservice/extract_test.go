package imageservice

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// yard is a folder with a layer to unpack into and, beside it, things that must not change.
type yard struct {
	t      testing.TB
	base   string
	layer  string
	before string
}

func newYard(t testing.TB) *yard {
	y := &yard{t: t, base: t.TempDir()}
	y.layer = filepath.Join(y.base, "layer")
	for _, d := range []string{"layer", "canary", "canary/sub"} {
		must(t, os.Mkdir(filepath.Join(y.base, d), 0o755))
	}
	for _, f := range []string{"canary/file", "canary/sub/file", "file"} {
		must(t, os.WriteFile(filepath.Join(y.base, f), []byte("alive"), 0o644))
	}
	must(t, os.Symlink("file", filepath.Join(y.base, "canary/link")))
	y.before = y.outside()
	return y
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// outside describes everything around the layer: names, modes, owners, times, links, attributes, content.
func (y *yard) outside() string {
	var b strings.Builder
	must(y.t, filepath.WalkDir(y.base, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == y.layer {
			return filepath.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		names := make([]byte, 1024)
		n, _ := unix.Llistxattr(path, names)
		content, _ := os.ReadFile(path)
		fmt.Fprintln(&b, path, info.Mode(), st.Uid, st.Gid, st.Nlink, st.Ino, info.ModTime().UnixNano(), string(names[:max(n, 0)]), string(content))
		return nil
	}))
	return b.String()
}

func (y *yard) unpack(tarball []byte) ([]string, error) {
	y.t.Helper()
	root, err := unix.Open(y.layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(y.t, err)
	defer unix.Close(root)
	implied, err := extract(y.t.Context(), bytes.NewReader(tarball), root, caps{10_000, 8 << 20, anything()})
	if after := y.outside(); after != y.before {
		y.t.Errorf("the layer changed what is outside:\n%s\nwas\n%s", after, y.before)
	}
	if info, err := os.Lstat(y.layer); err != nil || !info.IsDir() {
		y.t.Errorf("the layer's root is no directory any more: %v", err)
	}
	slices.Sort(implied)
	return implied, err
}

// anything is a meter that lets everything pass.
func anything() *meter {
	return &meter{src: source{size: 1 << 40}, limits: Limits{}.withDefaults(), image: &budget{most: 1 << 40}}
}

func (y *yard) at(name string) string { return filepath.Join(y.layer, name) }

func TestHostileLayers(t *testing.T) {
	abs := func(y *yard, name string) string { return filepath.Join(y.base, name) }
	suid := func(h tar.Header) tar.Header { h.Mode = 0o6777; return h }
	cases := map[string]struct {
		entries func(y *yard) []any
		class   func(error) bool // nil: it unpacks, and all of it stays inside
		check   func(t *testing.T, y *yard)
	}{
		"dotdot": {entries: func(y *yard) []any {
			return []any{reg("../canary/file"), "dead", reg("../../../../../../etc/cribox-canary"), "x"}
		},
			check: func(t *testing.T, y *yard) { wantFile(t, y.at("canary/file"), "dead") }},
		"absolute": {entries: func(y *yard) []any { return []any{reg(abs(y, "canary/file")), "dead"} },
			check: func(t *testing.T, y *yard) { wantFile(t, y.at(abs(y, "canary/file")), "dead") }},
		"absolute link as parent": {entries: func(y *yard) []any {
			return []any{link("d", abs(y, "canary")), reg("d/file"), "dead", dir("d/sub", 0o777), reg("d/sub/file"), "dead"}
		}, check: func(t *testing.T, y *yard) { wantFile(t, y.at(abs(y, "canary/sub/file")), "dead") }},
		"relative link as parent": {entries: func(y *yard) []any { return []any{link("d", "../canary"), reg("d/file"), "dead"} },
			check: func(t *testing.T, y *yard) { wantFile(t, y.at("canary/file"), "dead") }},
		"chain of links as parent": {entries: func(y *yard) []any {
			return []any{link("a", "b"), link("b", "c/../.."), link("c", abs(y, "canary")), reg("a/canary/file"), "dead"}
		}},
		"link loop as parent":     {entries: func(y *yard) []any { return []any{link("a", "b"), link("b", "a"), reg("a/x"), "dead"} }, class: errdefs.IsInvalidArgument},
		"dangling links for ever": {entries: func(y *yard) []any { return []any{link("a", "a/b"), reg("a/x"), "dead"} }, class: errdefs.IsInvalidArgument},
		"file over link":          {entries: func(y *yard) []any { return []any{link("f", abs(y, "file")), reg("f"), "dead"} }, check: func(t *testing.T, y *yard) { wantFile(t, y.at("f"), "dead") }},
		"directory over link":     {entries: func(y *yard) []any { return []any{link("d", abs(y, "canary")), dir("d", 0o777), reg("d/file"), "dead"} }, check: func(t *testing.T, y *yard) { wantFile(t, y.at("d/file"), "dead") }},
		"link over full directory": {entries: func(y *yard) []any {
			return []any{dir("d", 0o755), reg("d/file"), "mine", dir("d/e", 0o755), reg("d/e/x"), "mine", link("d", abs(y, "canary")), reg("d/file"), "dead"}
		}},
		"root is a link":            {entries: func(y *yard) []any { return []any{link("./", abs(y, "canary")), reg("file"), "mine"} }, check: func(t *testing.T, y *yard) { wantFile(t, y.at("file"), "mine") }},
		"root is a file":            {entries: func(y *yard) []any { return []any{reg("."), "x", tar.Header{Name: ".", Typeflag: tar.TypeFifo}} }},
		"root by dotdot is a link":  {entries: func(y *yard) []any { return []any{link("x/..", abs(y, "canary"))} }},
		"hard link to absolute":     {entries: func(y *yard) []any { return []any{suid(hard("h", abs(y, "canary/file"))), reg("h"), "dead"} }, class: errdefs.IsInvalidArgument},
		"hard link by dotdot":       {entries: func(y *yard) []any { return []any{suid(hard("h", "../canary/file"))} }, class: errdefs.IsInvalidArgument},
		"hard link to a later file": {entries: func(y *yard) []any { return []any{hard("h", "later"), reg("later"), "x"} }, class: errdefs.IsInvalidArgument},
		"hard link through a link":  {entries: func(y *yard) []any { return []any{link("d", abs(y, "canary")), suid(hard("h", "d/file"))} }, class: errdefs.IsInvalidArgument},
		"hard link to the root":     {entries: func(y *yard) []any { return []any{hard("h", "/")} }, class: errdefs.IsInvalidArgument},
		"hard link to itself":       {entries: func(y *yard) []any { return []any{reg("f"), "x", hard("f", "./f")} }, check: func(t *testing.T, y *yard) { wantFile(t, y.at("f"), "x") }},
		"hard link to a link": {entries: func(y *yard) []any { return []any{link("l", abs(y, "file")), suid(hard("h", "l"))} }, check: func(t *testing.T, y *yard) {
			if to, err := os.Readlink(y.at("h")); err != nil || to != abs(y, "file") {
				t.Errorf("%s %v", to, err)
			}
		}},
		"hard link to a link and write": {entries: func(y *yard) []any { return []any{link("l", abs(y, "file")), hard("h", "l"), reg("h"), "dead"} }},
		"whiteout of nothing":           {entries: func(y *yard) []any { return []any{reg(".wh.")} }, class: errdefs.IsInvalidArgument},
		"whiteout of dot":               {entries: func(y *yard) []any { return []any{reg(".wh..")} }, class: errdefs.IsInvalidArgument},
		"whiteout of dotdot":            {entries: func(y *yard) []any { return []any{reg("d/.wh...")} }, class: errdefs.IsInvalidArgument},
		"below a whiteout":              {entries: func(y *yard) []any { return []any{reg(".wh.a/b"), "x"} }, check: func(t *testing.T, y *yard) { wantFile(t, y.at(".wh.a/b"), "x") }},
		"below an empty whiteout":       {entries: func(y *yard) []any { return []any{reg("x/.wh./etc"), "x"} }},
		"whiteout through a link":       {entries: func(y *yard) []any { return []any{link("d", abs(y, "canary")), reg("d/.wh.file")} }},
		"opaque through a link":         {entries: func(y *yard) []any { return []any{link("d", "../canary"), reg("d/.wh..wh..opq")} }},
		"aufs names": {entries: func(y *yard) []any { return []any{reg(".wh..wh.plnk"), "x", reg(".wh..wh.aufs"), "x"} }, check: func(t *testing.T, y *yard) {
			if names, _ := os.ReadDir(y.layer); len(names) != 0 {
				t.Error(names)
			}
		}},
		"setuid below a link": {entries: func(y *yard) []any {
			return []any{link("d", abs(y, "canary")), suid(reg("d/file")), "dead", suid(dir("d/sub", 0))}
		}},
		"device below a link": {entries: func(y *yard) []any {
			return []any{link("d", abs(y, "canary")), tar.Header{Name: "d/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}
		}},
		"unknown type": {entries: func(y *yard) []any { return []any{tar.Header{Name: "x", Typeflag: 'Z'}} }, class: errdefs.IsInvalidArgument},
		"below a file": {entries: func(y *yard) []any { return []any{reg("f"), "x", reg("f/g"), "x"} }, class: errdefs.IsInvalidArgument},
		"magic link": {entries: func(y *yard) []any {
			return []any{link("p", "/proc/self/root"), reg("p" + abs(y, "canary/file")), "dead"}
		}},
		"component too long": {entries: func(y *yard) []any { return []any{reg(strings.Repeat("a", 300)), "x"} }, class: func(err error) bool { return err != nil }},
		"name too long":      {entries: func(y *yard) []any { return []any{reg(strings.Repeat("a/", 2100) + "f"), "x"} }, class: errdefs.IsInvalidArgument},
		"deep":               {entries: func(y *yard) []any { return []any{reg(strings.Repeat("a/", 1900) + "f"), "x"} }},
		"deep, step by step": {entries: func(y *yard) (all []any) {
			for i := range 600 {
				all = append(all, dir(strings.Repeat("a/", i+1), 0o755))
			}
			return all
		}},
		"deep and replaced": {entries: func(y *yard) []any {
			return []any{reg("d/" + strings.Repeat("a/", 1900) + "f"), "x", reg("d"), "mine"}
		}, check: func(t *testing.T, y *yard) { wantFile(t, y.at("d"), "mine") }},
		"too deep": {entries: func(y *yard) []any { return []any{reg(strings.Repeat("a/", 2047) + "f"), "x"} }, class: errdefs.IsResourceExhausted},
		"too deep through links": {entries: func(y *yard) []any {
			long := strings.TrimSuffix(strings.Repeat("a/", 1500), "/")
			return []any{dir(long, 0o755), link("l", long), dir("l/"+long, 0o755), reg("l/" + long + "/f"), "x"}
		}, class: errdefs.IsResourceExhausted},
		"owner minus one": {entries: func(y *yard) []any { return []any{tar.Header{Name: "x", Uid: 1<<32 - 1, Format: tar.FormatPAX}} }, class: errdefs.IsInvalidArgument},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			y := newYard(t)
			_, err := y.unpack(tarOf(t, c.entries(y)...))
			if c.class == nil && err != nil || c.class != nil && !c.class(err) {
				t.Errorf("unpacking: %v", err)
			}
			if c.check != nil {
				c.check(t, y)
			}
			must(t, removeTree(y.layer))
		})
	}
}

// TestHostileOrders unpacks the same hostile entries in a few hundred orders.
func TestHostileOrders(t *testing.T) {
	y := newYard(t)
	canary := filepath.Join(y.base, "canary")
	entries := []tar.Header{
		link("a", canary), link("a/b", "../.."), dir("a", 0o777), dir("a/b", 0o777), reg("a/b/file"), reg("a/file"), hard("h", "a/file"), hard("a/h", "h"),
		link("c", "a"), link("c/d", "/"), reg("c/d" + canary + "/file"), reg("a/.wh.file"), reg("a/.wh..wh..opq"), reg("file"), link("file", canary+"/file"),
		hard("x", "file"), {Name: "x", Typeflag: tar.TypeReg, Mode: 0o6777}, {Name: "a/dev", Typeflag: tar.TypeBlock, Devmajor: 8}, link("sub", "../canary/sub"), reg("sub/file"),
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		rnd.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
		all := make([]any, len(entries))
		for i, e := range entries {
			all[i] = e
		}
		y.unpack(tarOf(t, all...))
		if t.Failed() {
			t.Fatalf("order %+v", entries)
		}
		must(t, removeTree(y.layer))
		must(t, os.Mkdir(y.layer, 0o755))
		y.before = y.outside()
	}
}

func TestXattrs(t *testing.T) {
	y := newYard(t)
	h := reg("f")
	h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1", "SCHILY.xattr.trusted.overlay.redirect": "/..", "SCHILY.xattr.user.overlay.opaque": "y",
		"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.x": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	d := dir("d", 0o755)
	d.PAXRecords = h.PAXRecords
	root := dir("./", 0o755)
	root.PAXRecords = h.PAXRecords
	_, err := y.unpack(tarOf(t, root, h, d))
	must(t, err)
	for _, name := range []string{"f", "d", "."} {
		b := make([]byte, 1024)
		n, err := unix.Llistxattr(y.at(name), b)
		must(t, err)
		got := strings.Split(strings.Trim(string(b[:n]), "\x00"), "\x00")
		slices.Sort(got)
		if !slices.Equal(got, []string{"security.capability", "user.a"}) {
			t.Errorf("%s has %q", name, got)
		}
	}
	many := reg("many")
	many.PAXRecords = map[string]string{}
	for i := range 5000 {
		many.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.%d", i)] = strings.Repeat("x", 100)
	}
	if _, err := y.unpack(tarOf(t, many)); !errdefs.IsResourceExhausted(err) {
		t.Errorf("5000 attributes: %v", err)
	}
}

func TestMetadata(t *testing.T) {
	y := newYard(t)
	when := time.Unix(1234567890, 0)
	meta := func(h tar.Header) tar.Header {
		h.Uid, h.Gid, h.ModTime = 1234, 5678, when
		if h.Mode == 0 {
			h.Mode = 0o4751
		}
		return h
	}
	implied, err := y.unpack(tarOf(t, meta(dir("./", 0o711)), meta(dir("d", 0o1777)), meta(reg("d/f")), "content", meta(link("d/l", "nowhere")), meta(hard("d/h", "d/f")),
		meta(tar.Header{Name: "d/p", Typeflag: tar.TypeFifo}), meta(tar.Header{Name: "d/c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}), meta(reg("made/up/f"))))
	must(t, err)
	if !slices.Equal(implied, []string{"made", "made/up"}) {
		t.Errorf("made up: %q", implied)
	}
	for name, mode := range map[string]os.FileMode{".": os.ModeDir | 0o755, "d": os.ModeDir | os.ModeSticky | 0o777, "d/f": os.ModeSetuid | 0o751, "d/h": os.ModeSetuid | 0o751,
		"d/p": os.ModeNamedPipe | os.ModeSetuid | 0o751, "d/c": os.ModeDevice | os.ModeCharDevice | os.ModeSetuid | 0o751, "d/l": os.ModeSymlink | 0o777} {
		info, err := os.Lstat(y.at(name))
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != mode || st.Uid != 1234 || st.Gid != 5678 || !info.ModTime().Equal(when) {
			t.Errorf("%s: mode %v, owner %d:%d, time %v", name, info.Mode(), st.Uid, st.Gid, info.ModTime())
		}
	}
	wantFile(t, y.at("d/h"), "content")
}

func TestWhiteouts(t *testing.T) {
	y := newYard(t)
	_, err := y.unpack(tarOf(t, dir("d", 0o755), reg("d/.wh.gone"), reg(".wh.top"), dir("o", 0o755), reg("o/.wh..wh..opq"), reg("o/new"), "x",
		dir("same", 0o755), reg("same/f"), "x", reg(".wh.same"), reg("kept"), "x", reg(".wh.kept"), reg(".wh.back"), dir("back", 0o755), reg(".wh.file"), reg("file"), "x"))
	must(t, err)
	for _, name := range []string{"d/gone", "top"} {
		var st unix.Stat_t
		must(t, unix.Lstat(y.at(name), &st))
		if !isWhiteout(st) {
			t.Errorf("%s is no whiteout", name)
		}
	}
	for name, want := range map[string]bool{"d": false, "o": true, "same": true, "back": true} {
		fd, err := unix.Open(y.at(name), unix.O_RDONLY, 0)
		must(t, err)
		if isOpaque(fd) != want {
			t.Errorf("%s: opaque is not %v", name, want)
		}
		unix.Close(fd)
	}
	wantFile(t, y.at("same/f"), "x")
	wantFile(t, y.at("kept"), "x")
	wantFile(t, y.at("file"), "x")
}

func TestTruncatedTar(t *testing.T) {
	whole := tarOf(t, dir("d", 0o755), reg("d/f"), strings.Repeat("x", 5000))
	for _, n := range []int{100, 600, 1100, 3000} {
		y := newYard(t)
		if _, err := y.unpack(whole[:n]); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestTooManyEntries(t *testing.T) {
	y := newYard(t)
	var all []any
	for i := range 10_001 {
		all = append(all, reg(fmt.Sprint("d/", i)))
	}
	if _, err := y.unpack(tarOf(t, all...)); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
}

// TestReplacedDirectoriesAreForgotten: what was made up in a tree that a later entry replaces was not.
func TestReplacedDirectoriesAreForgotten(t *testing.T) {
	for name, row := range map[string]struct {
		entries []any
		want    []string
	}{
		"a made-up tree":  {[]any{reg("a/b/c/f"), reg("a2/f"), reg("a")}, []string{"a2"}},
		"in a named tree": {[]any{dir("d", 0o755), reg("d/a/b/f"), reg("a/b/f"), reg("d")}, []string{"a", "a/b"}},
		"below another":   {[]any{reg("a/b/c/f"), reg("a/d/f"), reg("a/b")}, []string{"a", "a/d"}},
		"made up again":   {[]any{reg("a/b/f"), reg("a"), dir("a", 0o755), reg("a/b/f")}, []string{"a/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t)
			implied, err := y.unpack(tarOf(t, row.entries...))
			if err != nil || !slices.Equal(implied, row.want) {
				t.Errorf("made up: %q, %v; want %q", implied, err, row.want)
			}
		})
	}
}

// TestDirectoryTwice: the last header of a directory counts, in everything; a name that is no directory in the end has its own times.
func TestDirectoryTwice(t *testing.T) {
	at := func(h tar.Header, mode, seconds int64) tar.Header {
		h.Mode, h.ModTime, h.AccessTime = mode, time.Unix(seconds, 0), time.Unix(seconds, 0)
		return h
	}
	y := newYard(t)
	_, err := y.unpack(tarOf(t, at(dir("d", 0), 0o700, 1000), reg("d/f"), "x", at(dir("./d/", 0), 0o751, 2000), reg("d/g"), "x",
		at(dir("e", 0), 0o700, 1000), at(reg("e"), 0o600, 2000), "x"))
	must(t, err)
	for name, mode := range map[string]os.FileMode{"d": os.ModeDir | 0o751, "e": 0o600} {
		info, err := os.Stat(y.at(name))
		must(t, err)
		if info.Mode() != mode || !info.ModTime().Equal(time.Unix(2000, 0)) {
			t.Errorf("%s has %s and %s, want %s and 2000 seconds", name, info.Mode(), info.ModTime(), mode)
		}
	}
}

// TestRootMode: everybody may pass through the root, whatever its header says.
func TestRootMode(t *testing.T) {
	for mode, want := range map[int64]os.FileMode{0o700: 0o755, 0o111: 0o555, 0o1733: 0o777 | os.ModeSticky, 0o755: 0o755} {
		y := newYard(t)
		_, err := y.unpack(tarOf(t, dir("./", mode), reg("f"), "x"))
		must(t, err)
		if info, err := os.Stat(y.layer); err != nil || info.Mode() != want|os.ModeDir {
			t.Errorf("root of mode %o: %v, %v, want %s", mode, info.Mode(), err, want)
		}
	}
}

// TestTooManyNames: what is kept in memory until the end of a layer is bounded, repeated names and made-up directories too.
func TestTooManyNames(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("n", 200)+"/", 15), "/")
	for name, entry := range map[string]func(i int) tar.Header{
		"repeated":                    func(int) tar.Header { return dir(long, 0o755) },
		"made up":                     func(i int) tar.Header { return reg(fmt.Sprint("made-up-", i, long, "/f")) },
		"below a directory of a name": func(i int) tar.Header { return reg(fmt.Sprint(long, "/", i, "/f")) },
	} {
		t.Run(name, func(t *testing.T) {
			var all []any
			for i := range 4000 {
				all = append(all, entry(i))
			}
			y := newYard(t)
			if _, err := y.unpack(tarOf(t, all...)); !errdefs.IsResourceExhausted(err) {
				t.Error(err)
			}
			must(t, removeTree(y.layer))
		})
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(tarOf(f, dir("d", 0o755), link("d/l", "/.."), reg("d/l/f"), "x", hard("h", "d/l"), reg(".wh.d")))
	f.Fuzz(func(t *testing.T, tarball []byte) {
		y := newYard(t)
		y.unpack(tarball)
	})
}
