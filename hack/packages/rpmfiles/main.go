// Rpmfiles lists the files that an RPM package carries, one a line: mode, SHA-256, path. It reads
// the payload itself, so that no rpm program is needed.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/cavaliergopher/cpio"
)

// leadSize is the size of what precedes the two headers of a package.
const leadSize = 96

var headerMagic = []byte{0x8e, 0xad, 0xe8, 1}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: rpmfiles PACKAGE")
		os.Exit(2)
	}
	if err := list(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "error: read %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func list(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	payload, err := openPayload(bufio.NewReader(f))
	if err != nil {
		return err
	}
	files := cpio.NewReader(payload)
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !h.Mode.IsRegular() {
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, files); err != nil {
			return err
		}
		fmt.Printf("%o %x %s\n", h.Mode.Perm(), sum.Sum(nil), path.Join("/", h.Name))
	}
}

// openPayload skips the lead, the signatures and the header.
func openPayload(r io.Reader) (io.Reader, error) {
	if _, err := io.CopyN(io.Discard, r, leadSize); err != nil {
		return nil, err
	}
	size, err := skipHeader(r)
	if err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	if _, err := io.CopyN(io.Discard, r, -size&7); err != nil {
		return nil, err
	}
	if _, err := skipHeader(r); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	return gzip.NewReader(r)
}

// skipHeader returns how many bytes follow the introduction of a header.
func skipHeader(r io.Reader) (int64, error) {
	var intro [16]byte
	if _, err := io.ReadFull(r, intro[:]); err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(intro[:], headerMagic) {
		return 0, fmt.Errorf("begins with %x, want %x", intro[:4], headerMagic)
	}
	entries, data := binary.BigEndian.Uint32(intro[8:]), binary.BigEndian.Uint32(intro[12:])
	size := 16*int64(entries) + int64(data)
	_, err := io.CopyN(io.Discard, r, size)
	return size, err
}
