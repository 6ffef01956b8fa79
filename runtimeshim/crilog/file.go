package crilog

import "io"

// File is what a Writer needs of a file. ReadAt fills its buffer, or returns io.EOF with the rest
// of the file. An operation that fails, or is interrupted by a kill, may be partly done.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (Stat, error)
	Append(b []byte) error
	Truncate(size int64) error
	Punch(end int64) // frees the disk space before end, if the file system can
}

// Stat is what a Writer needs to know about a file.
type Stat struct {
	Size    int64
	Removed bool // it has no name any more
}

// FileID identifies a file independent of its path. Zero = none.
type FileID struct{ Dev, Ino uint64 }

// Log is an open CRI log; File is nil if there is none.
type Log struct {
	File
	ID FileID
}

// Close closes the log, if there is one.
func (l *Log) Close() {
	if l.File != nil {
		l.File.Close()
	}
	*l = Log{}
}

// readFull fills b or returns an error.
func readFull(f File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
