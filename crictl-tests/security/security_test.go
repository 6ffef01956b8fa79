package security

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// The tests named TestSECnn are the rows of docs/security.md, which security_table_test.go holds to them.

// canary is a folder of the host at which hostile requests and images aim. Whatever they do, it has to stay as it is.
type canary struct {
	*harness.Daemon
	dir    string
	before map[string]string
}

const canarySecret = "this is the host's own"

// plantCanary makes the folder, with a file for each name that something in a container's root might be called.
func plantCanary(d *harness.Daemon) *canary {
	d.Helper()
	c := &canary{Daemon: d, dir: filepath.Join(d.Dir, "host")}
	d.Must(os.MkdirAll(filepath.Join(c.dir, "folder"), 0o755))
	for _, name := range []string{"secret", "ptmx", "hosts", "hostname", "resolv.conf", "mtab", "folder/secret"} {
		d.Must(os.WriteFile(c.path(name), []byte(canarySecret+"\n"), 0o640))
	}
	c.before = snapshot(d, c.dir)
	return c
}

func (c *canary) path(name string) string { return filepath.Join(c.dir, name) }

// up is the same path by way of more ".." than any root is deep.
func (c *canary) up(name string) string { return strings.Repeat("../", 40) + c.path(name)[1:] }

// wantUntouched compares names, content, mode, owner, inode and links of all there is.
func (c *canary) wantUntouched(what string) {
	c.Helper()
	after := snapshot(c, c.dir)
	for path, was := range c.before {
		if after[path] != was {
			c.Errorf("%s: %s was %s, is %s", what, path, was, after[path])
		}
	}
	for path := range after {
		if _, ok := c.before[path]; !ok {
			c.Errorf("%s: %s appeared on the host", what, path)
		}
	}
	c.before = after // one complaint for each deed
}

func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all[path] = fingerprint(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func fingerprint(t testing.TB, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatalf("no stat of %s", path)
	}
	print := fmt.Sprintf("mode %s owner %d:%d inode %d", info.Mode(), s.Uid, s.Gid, s.Ino)
	if info.Mode().IsRegular() {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		print += fmt.Sprintf(" links %d sha256 %s", s.Nlink, hex.EncodeToString(sum[:8]))
	}
	return print
}
