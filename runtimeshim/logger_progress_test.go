package runtimeshim

import (
	"os"
	"path/filepath"
	"testing"
)

// TestProgressTorn: a save that was cut at any byte leaves the state before it
// or the new one.
func TestProgressTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "progress")
	fd, p, err := loadProgress(path)
	if err != nil || p != (progress{}) {
		t.Fatal(p, err)
	}
	defer closeFD(&fd)
	p.log = fileID{7, 8}
	for i := range 4 {
		p.off = [2]int64{int64(i), 1 << 40}
		p.intent = intent{length: 5, stream: i & 1, to: 99, before: 1 << 41, at: -3, notice: i&2 != 0}
		p.leftOut = int64(i) << 33
		if err := p.save(fd); err != nil {
			t.Fatal(err)
		}
		checkProgress(t, path, p)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := p
	p.done, p.intent = true, intent{}
	if err := p.save(fd); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(path)
	for cut := range after {
		torn := append(append([]byte{}, after[:cut]...), before[cut:]...)
		path := filepath.Join(t.TempDir(), "torn")
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		fd, got, err := loadProgress(path)
		if err != nil || got != old && got != p {
			t.Fatalf("cut at %d: %+v, %v", cut, got, err)
		}
		closeFD(&fd)
	}
}

func checkProgress(t *testing.T, path string, want progress) {
	t.Helper()
	fd, got, err := loadProgress(path)
	defer closeFD(&fd)
	if err != nil || got != want {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
}
