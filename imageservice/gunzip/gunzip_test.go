package gunzip

import (
	"bytes"
	stdlib "compress/gzip"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
)

// contents are what streams unpack to: each has blocks, codes or copies of another kind.
func contents() map[string][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	var text, far bytes.Buffer
	for text.Len() < 1<<20 {
		fmt.Fprintf(&text, "%x %s\n", random.Uint32()>>random.IntN(32), "some words that repeat"[:random.IntN(22)])
	}
	for i := range 20 {
		far.Write(noise[:history-40])
		far.Write(bytes.Repeat([]byte{byte(i)}, random.IntN(80)))
	}
	var skewed bytes.Buffer // codes of 15 bits
	for range 300 << 10 {
		skewed.WriteByte(byte(min(255, random.ExpFloat64()*9)))
	}
	var periods bytes.Buffer
	for n := 1; n < 40; n++ {
		periods.Write(bytes.Repeat(noise[:n], 1000/n))
	}
	return map[string][]byte{
		"nothing": {}, "a byte": {7}, "noise": noise, "text": text.Bytes(), "far": far.Bytes(), "skewed": skewed.Bytes(),
		"periods": periods.Bytes(), "zeros": make([]byte, 3*windowSize+5),
	}
}

// compressors return the stream of some content.
var compressors = map[string]func(io.Writer, []byte){
	"stdlib 1":  writeWith(stdlib.NewWriterLevel, 1),
	"stdlib 9":  writeWith(stdlib.NewWriterLevel, 9),
	"huffman":   writeWith(stdlib.NewWriterLevel, stdlib.HuffmanOnly),
	"stored":    writeWith(stdlib.NewWriterLevel, 0),
	"other 1":   writeWith(gzip.NewWriterLevel, 1),
	"other 9":   writeWith(gzip.NewWriterLevel, 9),
	"stateless": writeWith(gzip.NewWriterLevel, gzip.StatelessCompression),
}

func writeWith[W io.WriteCloser](newWriter func(io.Writer, int) (W, error), level int) func(io.Writer, []byte) {
	return func(w io.Writer, content []byte) {
		z, err := newWriter(w, level)
		if err != nil {
			panic(err)
		}
		_, err = z.Write(content)
		if err := z.Close(); err != nil {
			panic(err)
		}
		if err != nil {
			panic(err)
		}
	}
}

func unpack(r io.Reader) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func unpackStdlib(r io.Reader) ([]byte, error) {
	z, err := stdlib.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// readers return a source in other pieces each.
var readers = map[string]func(io.Reader) io.Reader{
	"whole": func(r io.Reader) io.Reader { return r }, "bytewise": iotest.OneByteReader, "halves": iotest.HalfReader,
	"end with data": iotest.DataErrReader,
}

// same checks that the package treats a stream as compress/gzip does.
func same(t *testing.T, stream []byte, hows ...string) {
	t.Helper()
	want, wantErr := unpackStdlib(bytes.NewReader(stream))
	for _, how := range hows {
		got, err := unpack(readers[how](bytes.NewReader(stream)))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%s: %v, compress/gzip has %v", how, err, wantErr)
		}
		if wantErr == nil && !bytes.Equal(got, want) {
			t.Fatalf("%s: it unpacks to other bytes than with compress/gzip", how)
		}
		if !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want) {
			t.Fatalf("%s: before the error are other bytes than with compress/gzip", how)
		}
	}
}

func TestRead(t *testing.T) {
	for content, b := range contents() {
		for compressor, compress := range compressors {
			t.Run(content+" "+compressor, func(t *testing.T) {
				var stream bytes.Buffer
				compress(&stream, b)
				for how, reader := range readers {
					got, err := unpack(reader(bytes.NewReader(stream.Bytes())))
					if err != nil || !bytes.Equal(got, b) {
						t.Errorf("%s: %d bytes in place of %d, or other ones: %v", how, len(got), len(b), err)
					}
				}
			})
		}
	}
}

// header returns a stream whose header has every optional field, with a name of n bytes.
func header(n int) []byte {
	var b bytes.Buffer
	z := stdlib.NewWriter(&b)
	z.Name, z.Comment, z.Extra = strings.Repeat("n", n), "a comment", []byte("extra")
	io.WriteString(z, "content")
	z.Close()
	return b.Bytes()
}

// TestMembers checks several members in a row, and what may stand in their place.
func TestMembers(t *testing.T) {
	var one bytes.Buffer
	compressors["stdlib 9"](&one, []byte("some content, some content"))
	two := append(bytes.Clone(one.Bytes()), one.Bytes()...)
	for name, stream := range map[string][]byte{
		"none": {}, "two": two, "three": append(bytes.Clone(two), one.Bytes()...), "a header with all": header(7),
		"its longest name": header(511), "a longer name": header(512), "then zeros": append(bytes.Clone(two), make([]byte, 40)...),
		"then text": append(bytes.Clone(two), "trailing text"...), "then a little": append(bytes.Clone(two), 0x1f),
		"text": []byte("this is a text"),
	} {
		t.Run(name, func(t *testing.T) { same(t, stream, slices.Collect(maps.Keys(readers))...) })
	}
	t.Run("a copy from the member before", func(t *testing.T) {
		// The second member is one copy of a distance of 4: a fixed block with a length and a distance.
		bad := append(bytes.Clone(one.Bytes()), 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 0x03, 0x62, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		same(t, bad, "whole")
	})
}

// TestDamaged checks streams that end early or have a wrong bit.
func TestDamaged(t *testing.T) {
	for content, b := range contents() {
		b = b[:min(len(b), 300)]
		for compressor, compress := range compressors {
			t.Run(content+" "+compressor, func(t *testing.T) {
				var stream bytes.Buffer
				compress(&stream, b)
				for n := range stream.Len() {
					same(t, stream.Bytes()[:n], "end with data")
				}
				for bit := range 8 * min(stream.Len(), 80) {
					damaged := bytes.Clone(stream.Bytes())
					damaged[bit/8] ^= 1 << (bit % 8)
					same(t, damaged, "whole")
				}
			})
		}
	}
	for bit := range 8 * len(header(7)) {
		damaged := header(7)
		damaged[bit/8] ^= 1 << (bit % 8)
		same(t, damaged, "whole")
	}
}

// TestErrors checks that the error of the source comes through, and which others there are.
func TestErrors(t *testing.T) {
	var b bytes.Buffer
	compressors["stdlib 9"](&b, []byte("some content, some content"))
	stream := b.Bytes()
	wrong := bytes.Clone(stream)
	wrong[len(wrong)-1]++
	for _, c := range []struct {
		want error
		r    io.Reader
	}{
		{iotest.ErrTimeout, io.MultiReader(bytes.NewReader(stream[:15]), iotest.ErrReader(iotest.ErrTimeout))},
		{iotest.ErrTimeout, io.MultiReader(bytes.NewReader(stream), iotest.ErrReader(iotest.ErrTimeout))},
		{io.ErrUnexpectedEOF, bytes.NewReader(stream[:15])},
		{ErrHeader, strings.NewReader("no stream of gzip")},
		{ErrChecksum, bytes.NewReader(wrong)},
		{ErrCorrupt, bytes.NewReader(append(bytes.Clone(stream[:10]), bytes.Repeat([]byte{0xff}, 20)...))},
		{io.EOF, strings.NewReader("")},
	} {
		if _, err := unpack(c.r); err != c.want {
			t.Errorf("%v in place of %v", err, c.want)
		}
	}
}

// FuzzRead looks for a stream that compress/gzip treats in another way.
func FuzzRead(f *testing.F) {
	for _, b := range contents() {
		for _, compress := range compressors {
			var stream bytes.Buffer
			compress(&stream, b[:min(len(b), 500)])
			f.Add(stream.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) { same(t, stream, "whole", "halves") })
}

// FuzzBlocks is FuzzRead without headers and checksums, which hardly ever fit by chance.
func FuzzBlocks(f *testing.F) {
	for _, b := range contents() {
		for _, compress := range compressors {
			var stream bytes.Buffer
			compress(&stream, b[:min(len(b), 500)])
			f.Add(stream.Bytes()[10 : stream.Len()-8])
		}
	}
	header := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	f.Fuzz(func(t *testing.T, blocks []byte) {
		same(t, append(append(bytes.Clone(header), blocks...), make([]byte, 8)...), "whole", "halves")
	})
}

// BenchmarkRead compares with the two libraries.
func BenchmarkRead(b *testing.B) {
	text := contents()["text"]
	for _, level := range []int{1, 6} {
		var stream bytes.Buffer
		writeWith(stdlib.NewWriterLevel, level)(&stream, bytes.Repeat(text, 16))
		for name, open := range map[string]func(io.Reader) (io.Reader, error){
			"cribox":    func(r io.Reader) (io.Reader, error) { return NewReader(r) },
			"klauspost": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
			"stdlib":    func(r io.Reader) (io.Reader, error) { return stdlib.NewReader(r) },
		} {
			b.Run(fmt.Sprint(name, " level ", level), func(b *testing.B) {
				buf := make([]byte, 256<<10)
				b.SetBytes(int64(16 * len(text)))
				for b.Loop() {
					r, err := open(bytes.NewReader(stream.Bytes()))
					for err == nil {
						_, err = r.Read(buf)
					}
					if err != io.EOF {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
