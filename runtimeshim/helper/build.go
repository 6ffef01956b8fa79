package helper

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// OwnBuild returns the build id of this program; tests replace it.
var OwnBuild = func() string { return BuildOf("/proc/self/exe") }

// BuildOf identifies the build of a program: Go's build id, or otherwise device, inode, size and
// modification time of the file. "" when it cannot be read.
func BuildOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head, _ := io.ReadAll(io.LimitReader(f, 64<<10))
	if id := goBuildID(head); id != "" {
		return id
	}
	var st unix.Stat_t
	if err := unix.Fstat(unixfd.Of(f), &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d:%d:%d.%d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
}

// goBuildID finds the ELF note that the Go linker puts near the start of a program: the lengths of
// name and text, type 4, the name "Go".
func goBuildID(head []byte) string {
	mark := []byte("\x04\x00\x00\x00Go\x00\x00")
	for at := bytes.Index(head, mark); at >= 8; {
		size := int(binary.LittleEndian.Uint32(head[at-4:]))
		text := head[at+len(mark):]
		if binary.LittleEndian.Uint32(head[at-8:]) == 4 && size > 0 && size <= min(len(text), 512) {
			return string(text[:size])
		}
		next := bytes.Index(text, mark)
		if next < 0 {
			break
		}
		at += len(mark) + next
	}
	return ""
}
