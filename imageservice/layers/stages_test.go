package layers

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/cribox/cribox/imageservice/imagetest"
)

// TestStages checks that what is read is what the source has, and is hashed, however the source
// ends: the error comes after the bytes before it.
func TestStages(t *testing.T) {
	broken := errors.New("broken")
	for _, size := range []int{0, 1, stageBuffer - 1, stageBuffer, stageBuffer + 1, stageBuffers*stageBuffer + 7, 3 << 20} {
		data := imagetest.Noise(t, size)
		for name, source := range map[string]io.Reader{
			"at once":   bytes.NewReader(data),
			"by halves": iotest.HalfReader(bytes.NewReader(data)),
			"EOF with":  iotest.DataErrReader(bytes.NewReader(data)),
			"broken":    io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)),
			"panics":    io.MultiReader(bytes.NewReader(data), panics{}),
		} {
			h := sha256.New()
			s := startStages(source, h, func(reason any) error { return reason.(error) })
			got, err := io.ReadAll(s)
			s.end()
			switch name {
			case "broken":
				if !errors.Is(err, broken) || !bytes.Equal(got, data) {
					t.Errorf("%d bytes, %s: %d bytes, %v", size, name, len(got), err)
				}
			case "panics": // the bytes of the read that panicked are lost
				if !errors.Is(err, io.ErrNoProgress) || !bytes.HasPrefix(data, got) {
					t.Errorf("%d bytes, %s: %d bytes, %v", size, name, len(got), err)
				}
			default:
				want := sha256.Sum256(data)
				if err != nil || !bytes.Equal(got, data) || !bytes.Equal(h.Sum(nil), want[:]) {
					t.Errorf("%d bytes, %s: %d bytes with digest %x, %v", size, name, len(got), h.Sum(nil), err)
				}
			}
		}
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic(io.ErrNoProgress) }

// TestStagesEnd checks that both goroutines end with the reader, wherever they are.
func TestStagesEnd(t *testing.T) {
	for _, read := range []int{0, 1, stageBuffer, 2*stageBuffer + 1} {
		source := &endless{}
		s := startStages(source, sha256.New(), nil)
		if _, err := io.ReadFull(s, make([]byte, read)); err != nil {
			t.Fatal(err)
		}
		s.end()
		if most := (stageBuffers + 1 + read/stageBuffer) * stageBuffer; source.n > most {
			t.Errorf("%d bytes are read ahead of %d, at most %d", source.n, read, most)
		}
	}
}

type endless struct{ n int }

func (e *endless) Read(b []byte) (int, error) {
	e.n += len(b)
	return len(b), nil
}
