package layers

import (
	"archive/tar"
	"bytes"
	"context"
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

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/overlay"
	"github.com/cribox/cribox/internal/tree"
)

// yard is a folder with a layer to unpack into, and other files that must not change.
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
		imagetest.Must(t, os.Mkdir(filepath.Join(y.base, d), 0o755))
	}
	for _, f := range []string{"canary/file", "canary/sub/file", "file"} {
		imagetest.Must(t, os.WriteFile(filepath.Join(y.base, f), []byte("alive"), 0o644))
	}
	imagetest.Must(t, os.Symlink("file", filepath.Join(y.base, "canary/link")))
	y.before = y.outside()
	return y
}

// outside describes everything around the layer: names, modes, owners, times, links, attributes,
// content.
func (y *yard) outside() string {
	var b strings.Builder
	imagetest.Must(y.t, filepath.WalkDir(y.base, func(path string, e fs.DirEntry, err error) error {
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
	imagetest.Must(y.t, err)
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

// anything returns a meter without limits.
func anything() *meter {
	return &meter{src: Source{Size: 1 << 40}, limits: Limits{}.WithDefaults(), image: &budget{most: 1 << 40}}
}

func (y *yard) at(name string) string { return filepath.Join(y.layer, name) }

func TestHostileLayers(t *testing.T) {
	abs := func(y *yard, name string) string { return filepath.Join(y.base, name) }
	suid := func(h tar.Header) tar.Header { h.Mode = 0o6777; return h }
	cases := map[string]struct {
		entries func(y *yard) []any
		class   func(error) bool // nil: unpacking succeeds, and everything stays inside
		check   func(t *testing.T, y *yard)
	}{
		"dotdot": {entries: func(y *yard) []any {
			return []any{imagetest.File("../canary/file"), "dead", imagetest.File("../../../../../../etc/cribox-canary"), "x"}
		},
			check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at("canary/file"), "dead") }},
		"absolute": {entries: func(y *yard) []any { return []any{imagetest.File(abs(y, "canary/file")), "dead"} },
			check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at(abs(y, "canary/file")), "dead") }},
		"absolute link as parent": {entries: func(y *yard) []any {
			return []any{imagetest.Link("d", abs(y, "canary")), imagetest.File("d/file"), "dead", imagetest.Dir("d/sub", 0o777), imagetest.File("d/sub/file"), "dead"}
		}, check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at(abs(y, "canary/sub/file")), "dead") }},
		"relative link as parent": {entries: func(y *yard) []any { return []any{imagetest.Link("d", "../canary"), imagetest.File("d/file"), "dead"} },
			check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at("canary/file"), "dead") }},
		"chain of links as parent": {entries: func(y *yard) []any {
			return []any{imagetest.Link("a", "b"), imagetest.Link("b", "c/../.."), imagetest.Link("c", abs(y, "canary")), imagetest.File("a/canary/file"), "dead"}
		}},
		"link loop as parent": {entries: func(y *yard) []any {
			return []any{imagetest.Link("a", "b"), imagetest.Link("b", "a"), imagetest.File("a/x"), "dead"}
		}, class: errdefs.IsInvalidArgument},
		"dangling links for ever": {entries: func(y *yard) []any { return []any{imagetest.Link("a", "a/b"), imagetest.File("a/x"), "dead"} }, class: errdefs.IsInvalidArgument},
		"file over link":          {entries: func(y *yard) []any { return []any{imagetest.Link("f", abs(y, "file")), imagetest.File("f"), "dead"} }, check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at("f"), "dead") }},
		"directory over link": {entries: func(y *yard) []any {
			return []any{imagetest.Link("d", abs(y, "canary")), imagetest.Dir("d", 0o777), imagetest.File("d/file"), "dead"}
		}, check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at("d/file"), "dead") }},
		"link over full directory": {entries: func(y *yard) []any {
			return []any{imagetest.Dir("d", 0o755), imagetest.File("d/file"), "mine", imagetest.Dir("d/e", 0o755), imagetest.File("d/e/x"), "mine", imagetest.Link("d", abs(y, "canary")), imagetest.File("d/file"), "dead"}
		}},
		"root is a link": {entries: func(y *yard) []any {
			return []any{imagetest.Link("./", abs(y, "canary")), imagetest.File("file"), "mine"}
		}, check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at("file"), "mine") }},
		"root is a file": {entries: func(y *yard) []any {
			return []any{imagetest.File("."), "x", tar.Header{Name: ".", Typeflag: tar.TypeFifo}}
		}},
		"root by dotdot is a link": {entries: func(y *yard) []any { return []any{imagetest.Link("x/..", abs(y, "canary"))} }},
		"hard link to absolute": {entries: func(y *yard) []any {
			return []any{suid(imagetest.Hard("h", abs(y, "canary/file"))), imagetest.File("h"), "dead"}
		}, class: errdefs.IsInvalidArgument},
		"hard link by dotdot":       {entries: func(y *yard) []any { return []any{suid(imagetest.Hard("h", "../canary/file"))} }, class: errdefs.IsInvalidArgument},
		"hard link to a later file": {entries: func(y *yard) []any { return []any{imagetest.Hard("h", "later"), imagetest.File("later"), "x"} }, class: errdefs.IsInvalidArgument},
		"hard link through a link": {entries: func(y *yard) []any {
			return []any{imagetest.Link("d", abs(y, "canary")), suid(imagetest.Hard("h", "d/file"))}
		}, class: errdefs.IsInvalidArgument},
		"hard link to the root": {entries: func(y *yard) []any { return []any{imagetest.Hard("h", "/")} }, class: errdefs.IsInvalidArgument},
		"hard link to itself":   {entries: func(y *yard) []any { return []any{imagetest.File("f"), "x", imagetest.Hard("f", "./f")} }, check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at("f"), "x") }},
		"hard link to a link": {entries: func(y *yard) []any { return []any{imagetest.Link("l", abs(y, "file")), suid(imagetest.Hard("h", "l"))} }, check: func(t *testing.T, y *yard) {
			if to, err := os.Readlink(y.at("h")); err != nil || to != abs(y, "file") {
				t.Errorf("%s %v", to, err)
			}
		}},
		"hard link to a link and write": {entries: func(y *yard) []any {
			return []any{imagetest.Link("l", abs(y, "file")), imagetest.Hard("h", "l"), imagetest.File("h"), "dead"}
		}},
		"whiteout of nothing":     {entries: func(y *yard) []any { return []any{imagetest.File(".wh.")} }, class: errdefs.IsInvalidArgument},
		"whiteout of dot":         {entries: func(y *yard) []any { return []any{imagetest.File(".wh..")} }, class: errdefs.IsInvalidArgument},
		"whiteout of dotdot":      {entries: func(y *yard) []any { return []any{imagetest.File("d/.wh...")} }, class: errdefs.IsInvalidArgument},
		"below a whiteout":        {entries: func(y *yard) []any { return []any{imagetest.File(".wh.a/b"), "x"} }, check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at(".wh.a/b"), "x") }},
		"below an empty whiteout": {entries: func(y *yard) []any { return []any{imagetest.File("x/.wh./etc"), "x"} }},
		"whiteout through a link": {entries: func(y *yard) []any { return []any{imagetest.Link("d", abs(y, "canary")), imagetest.File("d/.wh.file")} }},
		"opaque through a link":   {entries: func(y *yard) []any { return []any{imagetest.Link("d", "../canary"), imagetest.File("d/.wh..wh..opq")} }},
		"aufs names": {entries: func(y *yard) []any {
			return []any{imagetest.File(".wh..wh.plnk"), "x", imagetest.File(".wh..wh.aufs"), "x"}
		}, check: func(t *testing.T, y *yard) {
			if names, _ := os.ReadDir(y.layer); len(names) != 0 {
				t.Error(names)
			}
		}},
		"setuid below a link": {entries: func(y *yard) []any {
			return []any{imagetest.Link("d", abs(y, "canary")), suid(imagetest.File("d/file")), "dead", suid(imagetest.Dir("d/sub", 0))}
		}},
		"device below a link": {entries: func(y *yard) []any {
			return []any{imagetest.Link("d", abs(y, "canary")), tar.Header{Name: "d/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}
		}},
		"unknown type": {entries: func(y *yard) []any { return []any{tar.Header{Name: "x", Typeflag: 'Z'}} }, class: errdefs.IsInvalidArgument},
		"below a file": {entries: func(y *yard) []any { return []any{imagetest.File("f"), "x", imagetest.File("f/g"), "x"} }, class: errdefs.IsInvalidArgument},
		"magic link": {entries: func(y *yard) []any {
			return []any{imagetest.Link("p", "/proc/self/root"), imagetest.File("p" + abs(y, "canary/file")), "dead"}
		}},
		"component too long": {entries: func(y *yard) []any { return []any{imagetest.File(strings.Repeat("a", 300)), "x"} }, class: func(err error) bool { return err != nil }},
		"name too long":      {entries: func(y *yard) []any { return []any{imagetest.File(strings.Repeat("a/", 2100) + "f"), "x"} }, class: errdefs.IsInvalidArgument},
		"deep":               {entries: func(y *yard) []any { return []any{imagetest.File(strings.Repeat("a/", 1900) + "f"), "x"} }},
		"deep, step by step": {entries: func(y *yard) (all []any) {
			for i := range 600 {
				all = append(all, imagetest.Dir(strings.Repeat("a/", i+1), 0o755))
			}
			return all
		}},
		"deep and replaced": {entries: func(y *yard) []any {
			return []any{imagetest.File("d/" + strings.Repeat("a/", 1900) + "f"), "x", imagetest.File("d"), "mine"}
		}, check: func(t *testing.T, y *yard) { imagetest.WantFile(t, y.at("d"), "mine") }},
		"too deep": {entries: func(y *yard) []any { return []any{imagetest.File(strings.Repeat("a/", 2047) + "f"), "x"} }, class: errdefs.IsResourceExhausted},
		"too deep through links": {entries: func(y *yard) []any {
			long := strings.TrimSuffix(strings.Repeat("a/", 1500), "/")
			return []any{imagetest.Dir(long, 0o755), imagetest.Link("l", long), imagetest.Dir("l/"+long, 0o755), imagetest.File("l/" + long + "/f"), "x"}
		}, class: errdefs.IsResourceExhausted},
		"owner minus one": {entries: func(y *yard) []any { return []any{tar.Header{Name: "x", Uid: 1<<32 - 1, Format: tar.FormatPAX}} }, class: errdefs.IsInvalidArgument},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			y := newYard(t)
			_, err := y.unpack(imagetest.Tar(t, c.entries(y)...))
			if c.class == nil && err != nil || c.class != nil && !c.class(err) {
				t.Errorf("unpacking: %v", err)
			}
			if c.check != nil {
				c.check(t, y)
			}
			imagetest.Must(t, tree.Remove(context.Background(), y.layer))
		})
	}
}

// TestHostileOrders unpacks the same hostile entries in a few hundred orders.
func TestHostileOrders(t *testing.T) {
	y := newYard(t)
	canary := filepath.Join(y.base, "canary")
	entries := []tar.Header{
		imagetest.Link("a", canary), imagetest.Link("a/b", "../.."), imagetest.Dir("a", 0o777), imagetest.Dir("a/b", 0o777), imagetest.File("a/b/file"), imagetest.File("a/file"), imagetest.Hard("h", "a/file"), imagetest.Hard("a/h", "h"),
		imagetest.Link("c", "a"), imagetest.Link("c/d", "/"), imagetest.File("c/d" + canary + "/file"), imagetest.File("a/.wh.file"), imagetest.File("a/.wh..wh..opq"), imagetest.File("file"), imagetest.Link("file", canary+"/file"),
		imagetest.Hard("x", "file"), {Name: "x", Typeflag: tar.TypeReg, Mode: 0o6777}, {Name: "a/dev", Typeflag: tar.TypeBlock, Devmajor: 8}, imagetest.Link("sub", "../canary/sub"), imagetest.File("sub/file"),
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		rnd.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
		all := make([]any, len(entries))
		for i, e := range entries {
			all[i] = e
		}
		y.unpack(imagetest.Tar(t, all...))
		if t.Failed() {
			t.Fatalf("order %+v", entries)
		}
		imagetest.Must(t, tree.Remove(context.Background(), y.layer))
		imagetest.Must(t, os.Mkdir(y.layer, 0o755))
		y.before = y.outside()
	}
}

func TestXattrs(t *testing.T) {
	y := newYard(t)
	h := imagetest.File("f")
	h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1", "SCHILY.xattr.trusted.overlay.redirect": "/..", "SCHILY.xattr.user.overlay.opaque": "y",
		"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.x": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	d := imagetest.Dir("d", 0o755)
	d.PAXRecords = h.PAXRecords
	root := imagetest.Dir("./", 0o755)
	root.PAXRecords = h.PAXRecords
	_, err := y.unpack(imagetest.Tar(t, root, h, d))
	imagetest.Must(t, err)
	for _, name := range []string{"f", "d", "."} {
		b := make([]byte, 1024)
		n, err := unix.Llistxattr(y.at(name), b)
		imagetest.Must(t, err)
		got := strings.Split(strings.Trim(string(b[:n]), "\x00"), "\x00")
		slices.Sort(got)
		if !slices.Equal(got, []string{"security.capability", "user.a"}) {
			t.Errorf("%s has %q", name, got)
		}
	}
	many := imagetest.File("many")
	many.PAXRecords = map[string]string{}
	for i := range 5000 {
		many.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.%d", i)] = strings.Repeat("x", 100)
	}
	if _, err := y.unpack(imagetest.Tar(t, many)); !errdefs.IsResourceExhausted(err) {
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
	implied, err := y.unpack(imagetest.Tar(t, meta(imagetest.Dir("./", 0o711)), meta(imagetest.Dir("d", 0o1777)), meta(imagetest.File("d/f")), "content", meta(imagetest.Link("d/l", "nowhere")), meta(imagetest.Hard("d/h", "d/f")),
		meta(tar.Header{Name: "d/p", Typeflag: tar.TypeFifo}), meta(tar.Header{Name: "d/c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}), meta(imagetest.File("made/up/f"))))
	imagetest.Must(t, err)
	if !slices.Equal(implied, []string{"made", "made/up"}) {
		t.Errorf("made up: %q", implied)
	}
	for name, mode := range map[string]os.FileMode{".": os.ModeDir | 0o755, "d": os.ModeDir | os.ModeSticky | 0o777, "d/f": os.ModeSetuid | 0o751, "d/h": os.ModeSetuid | 0o751,
		"d/p": os.ModeNamedPipe | os.ModeSetuid | 0o751, "d/c": os.ModeDevice | os.ModeCharDevice | os.ModeSetuid | 0o751, "d/l": os.ModeSymlink | 0o777} {
		info, err := os.Lstat(y.at(name))
		imagetest.Must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != mode || st.Uid != 1234 || st.Gid != 5678 || !info.ModTime().Equal(when) {
			t.Errorf("%s: mode %v, owner %d:%d, time %v", name, info.Mode(), st.Uid, st.Gid, info.ModTime())
		}
	}
	imagetest.WantFile(t, y.at("d/h"), "content")
}

// TestNewFiles: a file has the owner and mode of its entry wherever it is created: open(2) gives it
// the group of a setgid directory, the mode of a default ACL, and less than the mode under a umask.
func TestNewFiles(t *testing.T) {
	setgid := imagetest.Dir("setgid", 0o2755)
	setgid.Gid = 42
	acl := imagetest.Dir("acl", 0o755)
	acl.PAXRecords = map[string]string{"SCHILY.xattr." + defaultACL: "\x02\x00\x00\x00" +
		"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x04\x00\x00\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"} // u::rwx g::- o::-
	root := imagetest.Dir("./", 0o2755)
	root.Gid = 43
	now := time.Unix(1234567890, 0)
	f := func(name string, mode int64) tar.Header {
		return tar.Header{Name: name, Mode: mode, ModTime: now}
	}
	inherits := func(y *yard) {
		imagetest.Must(y.t, os.Chown(y.layer, 0, 44))
		imagetest.Must(y.t, os.Chmod(y.layer, os.ModeSetgid|0o755))
	}
	inheritsACL := func(y *yard) {
		imagetest.Must(y.t, unix.Setxattr(y.layer, defaultACL, []byte(acl.PAXRecords["SCHILY.xattr."+defaultACL]), 0))
	}
	for name, c := range map[string]struct {
		before func(y *yard)
		tar    []any
		file   string
		mode   os.FileMode
	}{
		"plain":                        {tar: []any{f("f", 0o644), "x"}, file: "f", mode: 0o644},
		"read only":                    {tar: []any{f("f", 0o444), "x"}, file: "f", mode: 0o444},
		"umask":                        {tar: []any{f("f", 0o666), "x"}, file: "f", mode: 0o666},
		"setuid":                       {tar: []any{f("f", 0o4755), "x"}, file: "f", mode: os.ModeSetuid | 0o755},
		"in a setgid directory":        {tar: []any{setgid, f("setgid/f", 0o644), "x"}, file: "setgid/f", mode: 0o644},
		"in a directory below it":      {tar: []any{setgid, f("setgid/made/up/f", 0o644), "x"}, file: "setgid/made/up/f", mode: 0o644},
		"in the root, setgid":          {tar: []any{root, f("f", 0o644), "x"}, file: "f", mode: 0o644},
		"before the root, setgid":      {tar: []any{f("g", 0o644), "x", root, f("f", 0o644), "x"}, file: "f", mode: 0o644},
		"in a root that was setgid":    {inherits, []any{f("f", 0o644), "x"}, "f", 0o644},
		"in a directory with an ACL":   {tar: []any{acl, f("acl/f", 0o644), "x"}, file: "acl/f", mode: 0o644},
		"in a root with an ACL before": {inheritsACL, []any{f("f", 0o644), "x"}, "f", 0o644},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t)
			if c.before != nil {
				c.before(y)
			}
			_, err := y.unpack(imagetest.Tar(t, c.tar...))
			imagetest.Must(t, err)
			info, err := os.Lstat(y.at(c.file))
			imagetest.Must(t, err)
			if st := info.Sys().(*syscall.Stat_t); info.Mode() != c.mode || st.Uid != 0 || st.Gid != 0 || !info.ModTime().Equal(now) {
				t.Errorf("mode %v, owner %d:%d, time %v", info.Mode(), st.Uid, st.Gid, info.ModTime())
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	y := newYard(t)
	_, err := y.unpack(imagetest.Tar(t, imagetest.Dir("d", 0o755), imagetest.File("d/.wh.gone"), imagetest.File(".wh.top"), imagetest.Dir("o", 0o755), imagetest.File("o/.wh..wh..opq"), imagetest.File("o/new"), "x",
		imagetest.Dir("same", 0o755), imagetest.File("same/f"), "x", imagetest.File(".wh.same"), imagetest.File("kept"), "x", imagetest.File(".wh.kept"), imagetest.File(".wh.back"), imagetest.Dir("back", 0o755), imagetest.File(".wh.file"), imagetest.File("file"), "x"))
	imagetest.Must(t, err)
	for _, name := range []string{"d/gone", "top"} {
		var st unix.Stat_t
		imagetest.Must(t, unix.Lstat(y.at(name), &st))
		if !isWhiteout(st) {
			t.Errorf("%s is no whiteout", name)
		}
	}
	for name, want := range map[string]bool{"d": false, "o": true, "same": true, "back": true} {
		fd, err := unix.Open(y.at(name), unix.O_RDONLY, 0)
		imagetest.Must(t, err)
		if overlay.IsOpaque(fd) != want {
			t.Errorf("%s: opaque is not %v", name, want)
		}
		unix.Close(fd)
	}
	imagetest.WantFile(t, y.at("same/f"), "x")
	imagetest.WantFile(t, y.at("kept"), "x")
	imagetest.WantFile(t, y.at("file"), "x")
}

func TestTruncatedTar(t *testing.T) {
	whole := imagetest.Tar(t, imagetest.Dir("d", 0o755), imagetest.File("d/f"), strings.Repeat("x", 5000))
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
		all = append(all, imagetest.File(fmt.Sprint("d/", i)))
	}
	if _, err := y.unpack(imagetest.Tar(t, all...)); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
}

// TestReplacedDirectoriesAreForgotten checks that implied directories are not reported if a later
// entry has replaced them.
func TestReplacedDirectoriesAreForgotten(t *testing.T) {
	for name, row := range map[string]struct {
		entries []any
		want    []string
	}{
		"a made-up tree":  {[]any{imagetest.File("a/b/c/f"), imagetest.File("a2/f"), imagetest.File("a")}, []string{"a2"}},
		"in a named tree": {[]any{imagetest.Dir("d", 0o755), imagetest.File("d/a/b/f"), imagetest.File("a/b/f"), imagetest.File("d")}, []string{"a", "a/b"}},
		"below another":   {[]any{imagetest.File("a/b/c/f"), imagetest.File("a/d/f"), imagetest.File("a/b")}, []string{"a", "a/d"}},
		"made up again":   {[]any{imagetest.File("a/b/f"), imagetest.File("a"), imagetest.Dir("a", 0o755), imagetest.File("a/b/f")}, []string{"a/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t)
			implied, err := y.unpack(imagetest.Tar(t, row.entries...))
			if err != nil || !slices.Equal(implied, row.want) {
				t.Errorf("made up: %q, %v; want %q", implied, err, row.want)
			}
		})
	}
}

// TestDirectoryTwice checks that the last header of a directory sets all of its metadata, and that
// a name which is no longer a directory keeps its own times.
func TestDirectoryTwice(t *testing.T) {
	at := func(h tar.Header, mode, seconds int64) tar.Header {
		h.Mode, h.ModTime, h.AccessTime = mode, time.Unix(seconds, 0), time.Unix(seconds, 0)
		return h
	}
	y := newYard(t)
	_, err := y.unpack(imagetest.Tar(t, at(imagetest.Dir("d", 0), 0o700, 1000), imagetest.File("d/f"), "x", at(imagetest.Dir("./d/", 0), 0o751, 2000), imagetest.File("d/g"), "x",
		at(imagetest.Dir("e", 0), 0o700, 1000), at(imagetest.File("e"), 0o600, 2000), "x"))
	imagetest.Must(t, err)
	for name, mode := range map[string]os.FileMode{"d": os.ModeDir | 0o751, "e": 0o600} {
		info, err := os.Stat(y.at(name))
		imagetest.Must(t, err)
		if info.Mode() != mode || !info.ModTime().Equal(time.Unix(2000, 0)) {
			t.Errorf("%s has %s and %s, want %s and 2000 seconds", name, info.Mode(), info.ModTime(), mode)
		}
	}
}

// TestRootMode checks that the root of a layer is readable and searchable for all, whatever its
// header says.
func TestRootMode(t *testing.T) {
	for mode, want := range map[int64]os.FileMode{0o700: 0o755, 0o111: 0o555, 0o1733: 0o777 | os.ModeSticky, 0o755: 0o755} {
		y := newYard(t)
		_, err := y.unpack(imagetest.Tar(t, imagetest.Dir("./", mode), imagetest.File("f"), "x"))
		imagetest.Must(t, err)
		if info, err := os.Stat(y.layer); err != nil || info.Mode() != want|os.ModeDir {
			t.Errorf("root of mode %o: %v, %v, want %s", mode, info.Mode(), err, want)
		}
	}
}

// TestTooManyNames checks the limit on names that are kept in memory until the end of a layer,
// including repeated names and implied directories.
func TestTooManyNames(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("n", 200)+"/", 15), "/")
	for name, entry := range map[string]func(i int) tar.Header{
		"repeated":                    func(int) tar.Header { return imagetest.Dir(long, 0o755) },
		"made up":                     func(i int) tar.Header { return imagetest.File(fmt.Sprint("made-up-", i, long, "/f")) },
		"below a directory of a name": func(i int) tar.Header { return imagetest.File(fmt.Sprint(long, "/", i, "/f")) },
	} {
		t.Run(name, func(t *testing.T) {
			var all []any
			for i := range 4000 {
				all = append(all, entry(i))
			}
			y := newYard(t)
			if _, err := y.unpack(imagetest.Tar(t, all...)); !errdefs.IsResourceExhausted(err) {
				t.Error(err)
			}
			imagetest.Must(t, tree.Remove(context.Background(), y.layer))
		})
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(imagetest.Tar(f, imagetest.Dir("d", 0o755), imagetest.Link("d/l", "/.."), imagetest.File("d/l/f"), "x", imagetest.Hard("h", "d/l"), imagetest.File(".wh.d")))
	f.Fuzz(func(t *testing.T, tarball []byte) {
		y := newYard(t)
		y.unpack(tarball)
	})
}
