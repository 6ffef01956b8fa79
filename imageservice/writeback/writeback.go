// Package writeback has the kernel begin to write a large file to the disk while the file still grows,
// so that the sync of the whole image has little left to wait for. It waits for nothing, and promises
// nothing.
package writeback

import "golang.org/x/sys/unix"

// Step is how much of a file is begun at once. A smaller file is left to the sync, which puts many of
// them beside each other.
const Step = 8 << 20

// File is a file that grows at its end.
type File struct {
	FD    int
	begun int64
}

// Grown says that the file has all its bytes before end.
func (f *File) Grown(end int64) {
	if end-f.begun < Step {
		return
	}
	// It is a hint: what is wrong with the disk, the sync reports.
	_ = unix.SyncFileRange(f.FD, f.begun, end-f.begun, unix.SYNC_FILE_RANGE_WRITE)
	f.begun = end
}
