package images

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// node is a folder with the files of a node that containerd runs.
type node struct {
	*harness.Daemon
	registry *fixture.Registry
	host     string
	app      string   // an image that is pinned
	lacking  string   // an image one layer of which containerd has not kept
	args     []string // of the command, which reads that folder
}

// multi is an index; of lacking, containerd has not kept the layer.
const multi, lacking = "busybox:multi", "busybox:plain"

const containerdConfig = `version = 3
[plugins."io.containerd.cri.v1.images"]
max_concurrent_downloads = 5
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
`

// nodeOfContainerd makes such a folder, with three images.
func nodeOfContainerd(t *testing.T, options ...harness.Option) *node {
	d := harness.NewDaemon(t, options...)
	n := &node{Daemon: d, registry: fixture.ForTest(t), host: filepath.Join(d.Dir, "host")}
	n.args = []string{"migrate", "containerd", "--host", n.host}
	n.app, n.lacking = n.registry.Ref("app:1"), n.registry.Ref(lacking)
	etc := filepath.Join(n.host, "etc", "containerd")
	d.Must(os.MkdirAll(filepath.Join(etc, "certs.d", "moved.test"), 0o755))
	d.Must(os.WriteFile(filepath.Join(etc, "config.toml"), []byte(containerdConfig), 0o600))
	hosts := fmt.Sprintf("server = \"http://%s\"\n", n.registry.Addr)
	d.Must(os.WriteFile(filepath.Join(etc, "certs.d", "moved.test", "hosts.toml"), []byte(hosts), 0o600))
	root := filepath.Join(n.host, "var", "lib", "containerd")
	meta := filepath.Join(root, "io.containerd.metadata.v1.bolt", "meta.db")
	d.Must(os.MkdirAll(filepath.Dir(meta), 0o700))
	db, err := bbolt.Open(meta, 0o600, nil)
	d.Must(err)
	d.Must(db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"app:1", multi, lacking} {
			digest, mediaType := n.store(root, name)
			ref := n.registry.Ref(name)
			repo, _, _ := strings.Cut(ref[strings.LastIndex(ref, "/")+1:], ":")
			byDigest := ref[:strings.LastIndex(ref, "/")+1] + repo + "@" + digest
			for _, name := range []string{ref, byDigest, digest} {
				n.record(tx, name, digest, mediaType, ref == n.app)
			}
		}
		return nil
	}))
	d.Must(db.Close())
	n.registry.ResetRequests()
	return n
}

// record makes the record of a name, as containerd does.
func (n *node) record(tx *bbolt.Tx, name, digest, mediaType string, pinned bool) {
	n.Helper()
	bucket := func(names ...string) *bbolt.Bucket {
		b, err := tx.CreateBucketIfNotExists([]byte(names[0]))
		for _, name := range names[1:] {
			n.Must(err)
			b, err = b.CreateBucketIfNotExists([]byte(name))
		}
		n.Must(err)
		return b
	}
	target := bucket("v1", "k8s.io", "images", name, "target")
	n.Must(target.Put([]byte("digest"), []byte(digest)))
	n.Must(target.Put([]byte("mediatype"), []byte(mediaType)))
	labels := bucket("v1", "k8s.io", "images", name, "labels")
	n.Must(labels.Put([]byte("io.cri-containerd.image"), []byte("managed")))
	if pinned {
		n.Must(labels.Put([]byte("io.cri-containerd.pinned"), []byte("pinned")))
	}
}

// document is what the test reads of manifests and indexes.
type document struct {
	MediaType                 string
	Manifests, Layers, Config documents
}

type documents []described

type described struct {
	Digest   string
	Platform struct{ Architecture string }
}

// UnmarshalJSON takes one descriptor as a list.
func (d *documents) UnmarshalJSON(b []byte) error {
	if b[0] == '{' {
		b = slices.Concat([]byte("["), b, []byte("]"))
	}
	return json.Unmarshal(b, (*[]described)(d))
}

// store copies the blobs of an image to where containerd has them. Of an index, it has
// one platform.
func (n *node) store(root, name string) (digest, mediaType string) {
	n.Helper()
	repo, tag, _ := strings.Cut(n.registry.Ref(name)[len(n.registry.Addr):], ":")
	get := func(path string) []byte {
		n.Helper()
		resp, err := http.Get("http://" + n.registry.Addr + "/v2" + repo + path)
		n.Must(err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		n.Must(err)
		if digest == "" {
			digest, mediaType = fmt.Sprintf("sha256:%x", sha256.Sum256(b)), resp.Header.Get("Content-Type")
		}
		return b
	}
	put := func(digest string, b []byte) {
		path := filepath.Join(root, "io.containerd.content.v1.content", "blobs", strings.ReplaceAll(digest, ":", "/"))
		n.Must(os.MkdirAll(filepath.Dir(path), 0o755))
		n.Must(os.WriteFile(path, b, 0o444))
	}
	var one func(d string, raw []byte)
	one = func(d string, raw []byte) {
		put(d, raw)
		var doc document
		n.Must(json.Unmarshal(raw, &doc))
		for _, m := range doc.Manifests {
			if m.Platform.Architecture == runtime.GOARCH {
				one(m.Digest, get("/manifests/"+m.Digest))
			}
		}
		if name == lacking {
			doc.Layers = doc.Layers[:len(doc.Layers)-1]
		}
		for _, blob := range slices.Concat(doc.Layers, doc.Config) {
			put(blob.Digest, get("/blobs/"+blob.Digest))
		}
	}
	first := get("/manifests/" + tag)
	one(digest, first)
	return digest, mediaType
}

// blobsAsked returns the requests for blobs that the registry has answered.
func (n *node) blobsAsked() (all []string) {
	for _, r := range n.registry.Requests() {
		if strings.Contains(r.Path, "/blobs/") {
			all = append(all, r.Method+" "+r.Path)
		}
	}
	return all
}

// TestMigrate moves a node from containerd: first what would happen, then the settings without a
// daemon, and the images when it runs. Pods start, and no blob is asked of the registry.
func TestMigrate(t *testing.T) {
	t.Parallel()
	n := nodeOfContainerd(t)
	dropIn := filepath.Join(n.ConfigFile()+".d", "50-containerd.toml")
	out, errs, err := n.Said(nil, append(n.args, "--dry-run")...)
	for _, want := range []string{"max_concurrent_downloads = 5  ->  images.downloads = 5", "disable_apparmor = true  (",
		dropIn + " would be written", n.app + ", ", "cribox image pull " + n.lacking} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("--dry-run has no %q: %s, %s, %v", want, out, errs, err)
		}
	}
	if _, err := os.Stat(n.ConfigFile() + ".d"); err == nil || len(n.ListImages()) > 0 {
		t.Errorf("--dry-run has changed something: %v, %v", err, n.ListImages())
	}
	var told struct {
		Lines  []struct{ Kind, From, To string }
		Images []struct {
			Names []string
			Done  string
		}
	}
	out, errs, err = n.Said(nil, append(n.args, "--dry-run", "--json")...)
	if err != nil || json.Unmarshal([]byte(out), &told) != nil || len(told.Lines) != 3 || len(told.Images) != 3 {
		t.Errorf("--json: %s, %s, %v", out, errs, err)
	}
	_, errs, err = n.Said(nil, append(n.args, "--state", t.TempDir())...)
	if err == nil || !strings.Contains(errs, "is `cribox serve` running") || !strings.Contains(errs, "repeat the command") {
		t.Errorf("without a daemon: %s, %v", errs, err)
	}
	if b, err := os.ReadFile(dropIn); err != nil || !strings.Contains(string(b), "downloads = 5") {
		t.Errorf("the settings are %s, %v", b, err)
	}
	if drawn := n.OnTerminal(n.args...); !strings.Contains(drawn, " taken (") || !strings.Contains(drawn, "hosts.toml unchanged") {
		t.Errorf("on a terminal: %q", drawn)
	}
	n.wantTaken()
	n.Restart() // with the settings
	pod := n.RunPod()
	c := pod.Run(harness.Shell("id -un"), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = n.app }))
	c.WaitExit()
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "app\n" {
		t.Errorf("a container of it prints %q", got)
	}
	if asked := n.registry.Requests(); len(asked) > 0 {
		t.Errorf("the registry was asked for %v", asked)
	}
	_, err = n.TryPull(n.app, nil) // as with imagePullPolicy Always
	n.Must(err)
	if asked := n.blobsAsked(); len(asked) > 0 {
		t.Errorf("a pull asks for %v", asked)
	}
	n.undone(dropIn)
}

// wantTaken checks that the images that can be taken over are listed.
func (n *node) wantTaken() {
	n.Helper()
	if i := n.ImageStatus(n.app); i == nil || !i.Pinned || !slices.Contains(i.RepoTags, n.app) {
		n.Errorf("the CRI has %v", i)
	}
	if n.ImageStatus(n.registry.Ref(multi)) == nil || n.ImageStatus(n.lacking) != nil {
		n.Errorf("the images are %v", n.ListImages())
	}
}

// undone takes the way back.
func (n *node) undone(dropIn string) {
	n.Helper()
	out, errs, err := n.Said(nil, append(n.args, "--undo")...)
	if err != nil || !strings.Contains(out, dropIn+" removed") || !strings.Contains(out, n.app+" is not pinned any more") {
		n.Errorf("--undo: %s, %s, %v", out, errs, err)
	}
	if i := n.ImageStatus(n.app); i == nil || i.Pinned {
		n.Errorf("after --undo the CRI has %v", i)
	}
	for _, path := range []string{n.ConfigFile() + ".d", filepath.Join(n.RegistryConfig(), "moved.test")} {
		if _, err := os.Stat(path); err == nil {
			n.Errorf("--undo leaves %s", path)
		}
	}
	if out, _, err := n.Said(nil, append(n.args, "--undo")...); err != nil || !strings.HasPrefix(out, "nothing of a migration is left") {
		n.Errorf("--undo again: %s, %v", out, err)
	}
}

// TestMigrateKilled kills the command at each of its steps, and the daemon at some of a pull: the next
// command does the rest.
func TestMigrateKilled(t *testing.T) {
	t.Parallel()
	n := nodeOfContainerd(t, func(s *harness.Settings) { s.Binary = harness.Steps })
	killed := func(step string, args ...string) {
		t.Helper()
		cmd := harness.Command(harness.Steps, append(args, "--config", n.ConfigFile())...)
		cmd.Env = append(os.Environ(), "CRIBOX_STEP_KILL="+step)
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("killed at %s, the command ends well: %s", step, out)
		}
	}
	killed("migrate.journal", n.args...)
	killed("migrate.written", n.args...)
	n.Stop()
	for _, step := range []string{"pull.resolved", "pull.synced"} {
		n.Env = append(n.Env, "CRIBOX_STEP_KILL="+step)
		n.Start()
		if out, errs, err := n.Said(nil, n.args...); err == nil {
			t.Errorf("with the daemon killed at %s, the command ends well: %s, %s", step, out, errs)
		}
		n.Heal()
		n.Stop()
	}
	n.Start()
	if out, errs, err := n.Said(nil, n.args...); err != nil {
		t.Errorf("the next one: %s, %s, %v", out, errs, err)
	}
	n.wantTaken()
	killed("migrate.removed", append(n.args, "--undo")...)
	if _, errs, err := n.Said(nil, append(n.args, "--undo")...); err != nil {
		t.Errorf("--undo: %s, %v", errs, err)
	}
	if _, err := os.Stat(n.ConfigFile() + ".d"); err == nil {
		t.Error("--undo leaves the folder of settings")
	}
}
