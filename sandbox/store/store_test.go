package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

func open(t *testing.T, dir string) (*Store, []Torn) {
	t.Helper()
	s, torn, err := Open(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return s, torn
}

func TestRemembersAcrossOpen(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if err := s.Create(Pod{ID: "a", State: PodCreating, Created: 7}, []byte("pod\x00asked")); err != nil {
		t.Fatal(err)
	}
	if err := s.SetAsked("a", "c", []byte("container asked")); err != nil {
		t.Fatal(err)
	}
	_, err := s.Update("a", func(p *Pod) error {
		p.State = PodReady
		p.Containers["c"] = Container{ID: "c", State: ContainerRunning, Groups: []uint32{1, 2}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	again, torn := open(t, dir)
	if len(torn) != 0 {
		t.Fatalf("torn: %v", torn)
	}
	p, ok := again.Get("a")
	if !ok || p.State != PodReady || p.Created != 7 || p.Containers["c"].State != ContainerRunning || !slices.Equal(p.Containers["c"].Groups, []uint32{1, 2}) {
		t.Fatalf("record after a restart: %+v", p)
	}
	if b, err := again.Asked("a", ""); err != nil || string(b) != "pod\x00asked" {
		t.Fatalf("request after a restart: %q, %v", b, err)
	}
	if b, err := again.Asked("a", "c"); err != nil || string(b) != "container asked" {
		t.Fatalf("container's request after a restart: %q, %v", b, err)
	}
}

// A record that cannot be read costs one pod and never the start (I4).
func TestTornRecordIsSetAside(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "half": `{"format":1,"id":"bad","sta`, "another pod's": `{"format":1,"id":"good"}`, "format 0": `{"id":"bad"}`, "no JSON": "\x00\x01",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := open(t, dir)
			for _, id := range []string{"good", "bad"} {
				if err := s.Create(Pod{ID: id, State: PodReady}, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "bad", stateFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second start finds the folder aside already
				again, torn := open(t, dir)
				if _, ok := again.Get("good"); !ok {
					t.Fatal("the good record is lost with the bad one")
				}
				if _, ok := again.Get("bad"); ok {
					t.Fatal("the bad record is shown")
				}
				if len(torn) > 1 {
					t.Fatalf("torn: %v", torn)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "bad"+tornSuffix)); err != nil {
				t.Fatalf("nothing was kept to look at: %v", err)
			}
		})
	}
}

// After a downgrade nothing is concluded from records that cannot be read: what runs would be taken
// for orphans.
func TestNewerRecordRefusesToOpen(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if err := s.Create(Pod{ID: "a", State: PodReady}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", stateFile), []byte(`{"format":99,"id":"a"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, torn, err := Open(dir, ""); err == nil || len(torn) != 0 {
		t.Fatalf("opened with %v set aside", torn)
	}
	if _, err := os.Stat(filepath.Join(dir, "a", stateFile)); err != nil {
		t.Fatalf("the newer record was touched: %v", err)
	}
}

// A crash between the folder and its first record, or in the middle of forgetting, leaves no
// record: it is not worth a word.
func TestHalfFolderIsRemoved(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", askedFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, torn := open(t, dir); len(torn) != 0 {
		t.Fatalf("set aside: %v", torn)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
}

func TestRefusedChangeLeavesTheRecord(t *testing.T) {
	s, _ := open(t, t.TempDir())
	if err := s.Create(Pod{ID: "a", State: PodReady}, nil); err != nil {
		t.Fatal(err)
	}
	before, _ := s.Get("a")
	_, err := s.Update("a", func(p *Pod) error {
		p.State = PodRemoving
		p.Containers["x"] = Container{}
		return errdefs.ErrFailedPrecondition
	})
	after, _ := s.Get("a")
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || after.State != PodReady || len(after.Containers) != 0 || len(before.Containers) != 0 {
		t.Fatalf("after a refused change: %v, %+v", err, after)
	}
}

// A stop on a full disk goes on (I15): ForceUpdate shows what could not be written.
func TestStopOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if err := s.Create(Pod{ID: "a", State: PodReady}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil { // no file can be written there now
		t.Fatal(err)
	}
	stop := func(p *Pod) error { p.State = PodStopping; return nil }
	if _, err := s.Update("a", stop); err == nil {
		t.Fatal("Update without a disk gave no error")
	}
	if p, _ := s.Get("a"); p.State != PodReady {
		t.Fatalf("Update showed %s although it could not be written", p.State)
	}
	if _, err := s.ForceUpdate("a", stop); err == nil {
		t.Fatal("ForceUpdate hid the disk's error")
	}
	if p, _ := s.Get("a"); p.State != PodStopping {
		t.Fatalf("ForceUpdate shows %s", p.State)
	}
	if err := s.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update("a", stop); !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("a removed pod: %v", err)
	}
}

func TestConcurrentChangesAllCount(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if err := s.Create(Pod{ID: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 50
	done := make(chan error, writers)
	for range writers {
		go func() {
			var err error
			for range each {
				_, e := s.Update("a", func(p *Pod) error { p.Created++; return nil })
				err = errors.Join(err, e)
				s.List()
			}
			done <- err
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if p, _ := s.Get("a"); p.Created != writers*each {
		t.Fatalf("%d changes counted, want %d", p.Created, writers*each)
	}
	again, _ := open(t, dir)
	if p, _ := again.Get("a"); p.Created != writers*each {
		t.Fatalf("%d changes on disk, want %d", p.Created, writers*each)
	}
}
