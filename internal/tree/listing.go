package tree

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// listing reads the names in a folder in chunks, and knows the position after each name. So a
// folder can be closed in the middle and read further later.
type listing struct {
	buf  []byte
	rest []byte
	kind byte // type of the last returned entry: unix.DT_DIR and so on
}

func newListing() *listing { return &listing{buf: make([]byte, 8<<10)} }

// The layout of struct linux_dirent64.
const (
	direntNext   = 8
	direntLength = 16
	direntKind   = 18
	direntName   = 19
)

// next returns the next name, and the position after it. It returns "" at the end of the folder.
func (l *listing) next(fd int) (name string, at int64, err error) {
	for {
		for len(l.rest) >= direntName {
			length := int(binary.NativeEndian.Uint16(l.rest[direntLength:]))
			if length < direntName || length > len(l.rest) {
				return "", 0, unix.EIO
			}
			at = int64(binary.NativeEndian.Uint64(l.rest[direntNext:]))
			l.kind = l.rest[direntKind]
			raw, _, _ := bytes.Cut(l.rest[direntName:length], []byte{0})
			l.rest = l.rest[length:]
			if name = string(raw); name != "." && name != ".." && name != "" {
				return name, at, nil
			}
		}
		n, err := unix.Getdents(fd, l.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return "", 0, err
		}
		l.rest = l.buf[:n]
	}
}
