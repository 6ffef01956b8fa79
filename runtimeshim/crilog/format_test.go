package crilog

import (
	"bytes"
	"math/rand"
	"strings"
	"testing"
	"time"
)

var criAt = time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))

// format formats src through a buffer with a capacity of room bytes.
func format(src string, final bool, room int) string {
	prefix := newPrefix(0, criAt)
	var all []byte
	for {
		out, used := appendLines(make([]byte, 0, room), &prefix, []byte(src), final)
		all = append(all, out...)
		if src = src[used:]; used == 0 {
			return string(all)
		}
	}
}

func TestCRIFormat(t *testing.T) {
	const at = "2026-01-02T02:04:05.000000006Z stdout "
	long := strings.Repeat("x", MaxPiece)
	tests := []struct {
		name, src string
		final     bool
		want      []string
	}{
		{"nothing", "", true, nil},
		{"a line", "hello\n", false, []string{"F hello"}},
		{"two lines", "a\nb\n", false, []string{"F a", "F b"}},
		{"empty lines", "\n\n", false, []string{"F ", "F "}},
		{"unfinished", "a\nb", false, []string{"F a"}},
		{"unfinished at the end", "a\nb", true, []string{"F a", "P b"}},
		{"bytes", "\x00\xff\r\t\n", false, []string{"F \x00\xff\r\t"}},
		{"exactly a piece", long + "\n", false, []string{"F " + long}},
		{"exactly a piece, unfinished", long, false, nil},
		{"exactly a piece at the end", long, true, []string{"P " + long}},
		{"one more", long + "y\n", false, []string{"P " + long, "F y"}},
		{"one more, unfinished", long + "y", false, []string{"P " + long}},
		{"one more at the end", long + "y", true, []string{"P " + long, "P y"}},
		{"two pieces", long + long + "\n", false, []string{"P " + long, "F " + long}},
	}
	for _, test := range tests {
		want := ""
		for _, line := range test.want {
			want += at + line + "\n"
		}
		for _, room := range []int{MaxLine, MaxLine + 1, 1 << 20} {
			if got := format(test.src, test.final, room); got != want {
				t.Errorf("%s, room %d: got %.200q, want %.200q", test.name, room, got, want)
			}
		}
	}
}

func TestCRIMiBLine(t *testing.T) {
	line := strings.Repeat("z", 1<<20)
	got, err := Parse([]byte(format(line+"\n", false, 100<<10)))
	if err != nil || string(got[0]) != line+"\n" {
		t.Fatalf("got %d bytes back, %v", len(got[0]), err)
	}
}

// FuzzCRI: parsing returns the original bytes, whatever the portions and buffer sizes, and
// formatting twice gives identical bytes.
func FuzzCRI(f *testing.F) {
	f.Add([]byte("a\n\nb"), int64(1))
	f.Add(bytes.Repeat([]byte("x"), 3*MaxPiece+1), int64(2))
	f.Add([]byte(strings.Repeat("y", MaxPiece)+"\n"+strings.Repeat("z", MaxPiece+1)+"\n"), int64(3))
	f.Fuzz(func(t *testing.T, src []byte, seed int64) {
		random := rand.New(rand.NewSource(seed))
		prefix := newPrefix(0, criAt)
		var log []byte
		off, arrived := 0, 0
		for off < len(src) {
			arrived = min(len(src), arrived+1+random.Intn(2*MaxPiece))
			final := arrived == len(src)
			room := MaxLine + random.Intn(MaxLine)
			out, used := appendLines(make([]byte, 0, room), &prefix, src[off:arrived], final)
			again, n := appendLines(make([]byte, 0, len(out)), &prefix, src[off:off+used], true)
			if n != used || !bytes.Equal(again, out) {
				t.Fatalf("made again at %d..%d: differs", off, off+used)
			}
			log = append(log, out...)
			off += used
		}
		if whole := format(string(src), true, 64<<10); string(log) != whole {
			t.Fatalf("depends on the portions")
		}
		got, err := Parse(log)
		if err != nil || !bytes.Equal(got[0], src) {
			t.Fatalf("got %.100q back of %.100q, %v", got[0], src, err)
		}
	})
}

func BenchmarkCRIFormat(b *testing.B) {
	src := bytes.Repeat(append(bytes.Repeat([]byte("x"), 79), '\n'), (128<<10)/80)
	dst := make([]byte, 0, 256<<10)
	prefix := newPrefix(0, criAt)
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		appendLines(dst, &prefix, src, false)
	}
}
