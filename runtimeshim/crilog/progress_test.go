package crilog

import "testing"

// TestProgressTorn: a save that is interrupted at any byte leaves the old state or the new one.
func TestProgressTorn(t *testing.T) {
	f := &memory{d: &disk{}}
	var p progress
	if err := p.load(f); err != nil || p != (progress{}) || len(f.data) != 2*progressSlot {
		t.Fatal(p, err)
	}
	p.log = FileID{7, 8}
	for i := range 4 {
		p.off = [2]int64{int64(i), 1 << 40}
		p.intent = intent{length: 5, stream: i & 1, to: 99, before: 1 << 41, at: -3, notice: i&2 != 0}
		p.leftOut = int64(i) << 33
		if err := p.save(f); err != nil {
			t.Fatal(err)
		}
		if got := loaded(t, f.data); got != p {
			t.Fatalf("got %+v, want %+v", got, p)
		}
	}
	before := append([]byte{}, f.data...)
	old := p
	p.done, p.intent = true, intent{}
	if err := p.save(f); err != nil {
		t.Fatal(err)
	}
	for cut := range f.data {
		torn := append(append([]byte{}, f.data[:cut]...), before[cut:]...)
		if got := loaded(t, torn); got != old && got != p {
			t.Fatalf("cut at %d: %+v", cut, got)
		}
	}
}

func loaded(t *testing.T, data []byte) (p progress) {
	t.Helper()
	if err := p.load(&memory{d: &disk{}, data: data}); err != nil {
		t.Fatal(err)
	}
	return p
}
