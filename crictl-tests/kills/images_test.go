package kills

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestImageCommandKills ends the daemon at every step of the commands that change images, and gives the command again. pull passes the
// steps of PullImage; verify --repair and migrate have tests of their own, and so has save, which changes nothing.
func TestImageCommandKills(t *testing.T) {
	if _, err := os.Stat(harness.Binary(harness.Steps)); err != nil {
		t.Skipf("no binary that dies at a named step: %v", err)
	}
	for name, tell := range map[string]func(*harness.Daemon) *story{
		"load": loadsAnImage, "rm": removesAnImage, "prune": prunesImages, "pin": pinsAnImage, "unpin": unpinsAnImage,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := harness.NewDaemon(t, harness.KeepsBlobs)
			d.Pulled(harness.Busybox)
			d.Must(command(d, nil, "pin", d.Ref(harness.Busybox))) // prune leaves it
			killIn(t, d, tell, func(*harness.Daemon) {}, ofImages)
			d.Must(command(d, nil, "unpin", d.Ref(harness.Busybox)))
		})
	}
}

// ofImages tells the steps of commands from those of what a daemon does by itself after its start.
func ofImages(step string) bool {
	return strings.HasPrefix(step, "pull.") || strings.HasPrefix(step, "remove.") || strings.HasPrefix(step, "pins.")
}

// carried is the image that these stories are about; no registry has it by this name.
const carried = "nowhere.test/app:1"

// archiveOf is the image as `docker save` writes it.
func archiveOf(d *harness.Daemon) []byte {
	d.Helper()
	i, err := d.Registry().Image("app:1")
	d.Must(err)
	b, err := i.Archive(carried)
	d.Must(err)
	return b
}

// command gives a command of `cribox image`. Its error is one of a daemon that is not there.
func command(d *harness.Daemon, in io.Reader, args ...string) error {
	if _, errs, err := d.Said(in, append([]string{"image"}, args...)...); err != nil {
		return status.Error(codes.Unavailable, errs)
	}
	return nil
}

func load(d *harness.Daemon) error { return command(d, bytes.NewReader(archiveOf(d)), "load") }

// wantSound: no image on the node is damaged.
func wantSound(d *harness.Daemon) {
	d.Helper()
	d.Must(command(d, nil, "verify"))
}

// remove removes the image if it is there. If it is, it is whole.
func remove(d *harness.Daemon) {
	d.Helper()
	if d.ImageStatus(carried) == nil {
		return
	}
	wantSound(d)
	d.Must(command(d, nil, "rm", carried))
}

func loadsAnImage(d *harness.Daemon) *story {
	return &story{d: d, prepare: func() {}, act: func() error { return load(d) }, replay: func() {
		remove(d)
		d.Must(load(d))
		remove(d)
	}}
}

func removesAnImage(d *harness.Daemon) *story {
	return &story{d: d, prepare: func() { d.Must(load(d)) }, act: func() error { return command(d, nil, "rm", carried) },
		replay: func() {
			remove(d)
			wantGone(d)
		}}
}

func prunesImages(d *harness.Daemon) *story {
	return &story{d: d, prepare: func() { d.Must(load(d)) }, act: func() error { return command(d, nil, "prune") },
		replay: func() {
			d.Must(command(d, nil, "prune"))
			wantGone(d)
			wantSound(d)
		}}
}

func wantGone(d *harness.Daemon) {
	d.Helper()
	if i := d.ImageStatus(carried); i != nil {
		d.Errorf("it is listed: %v", i)
	}
}

func pinsAnImage(d *harness.Daemon) *story {
	return &story{d: d, prepare: func() { d.Must(load(d)) }, act: func() error { return command(d, nil, "pin", carried) },
		replay: func() {
			d.Must(command(d, nil, "pin", carried)) // the same, if it is pinned
			wantPinned(d, true)
			d.Must(command(d, nil, "unpin", carried))
			wantPinned(d, false)
			remove(d)
		}}
}

func unpinsAnImage(d *harness.Daemon) *story {
	pin := func() { d.Must(command(d, nil, "pin", carried)) }
	return &story{d: d, prepare: func() { d.Must(load(d)); pin() }, act: func() error { return command(d, nil, "unpin", carried) },
		replay: func() {
			pin()
			wantPinned(d, true)
			d.Must(command(d, nil, "unpin", carried))
			wantPinned(d, false)
			remove(d)
		}}
}

func wantPinned(d *harness.Daemon, want bool) {
	d.Helper()
	if i := d.ImageStatus(carried); i == nil || i.Pinned != want {
		d.Errorf("the CRI has %v, want pinned: %t", i, want)
	}
}

// TestImageSaveKilled ends the daemon in the middle of an archive: the command fails, and there is no file of this name. With the command
// killed, the daemon lets the image go.
func TestImageSaveKilled(t *testing.T) {
	if _, err := os.Stat(harness.Binary(harness.Steps)); err != nil {
		t.Skipf("no binary that dies at a named step: %v", err)
	}
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	d.Must(load(d))
	file := filepath.Join(t.TempDir(), "app.tar")
	for _, step := range []string{"save.blob", "save.blob:3"} {
		d.Stop()
		if !dieAt(d, step) {
			t.Fatalf("at %s it died before it was asked for anything", step)
		}
		if err := command(d, nil, "save", "-o", file, carried); err == nil {
			t.Errorf("killed at %s, the command ends well", step)
		}
		if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) > 0 {
			t.Errorf("killed at %s, it leaves %v (%v)", step, left, err)
		}
		d.Heal()
	}
	cmd := d.Cribox("image", "save", carried)
	out, err := cmd.StdoutPipe()
	d.Must(err)
	d.Must(cmd.Start())
	save := harness.Watch(cmd)
	_, err = io.ReadFull(out, make([]byte, 512)) // the pipe then holds less than is left
	d.Must(err)
	save.Signal(syscall.SIGKILL)
	save.Wait(t)
	harness.Eventually(d, "the daemon to let the image go", func() error {
		return command(d, nil, "rm", carried)
	})
}
