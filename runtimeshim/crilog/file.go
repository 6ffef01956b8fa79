package crilog

import "io"

// File is what a Writer needs of a file. ReadAt fills its buffer, or returns
// io.EOF with what the file still has. An operation that fails, or is
// interrupted by a kill, may have been done in part.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (Stat, error)
	Append(b []byte) error
	Truncate(size int64) error
	Punch(end int64) // gives back the room of what is before end, if that can be done
}

// Stat is what a Writer wants to know of a file.
type Stat struct {
	Size    int64
	Removed bool // it has no name any more
}

// FileID names a file whatever its path is now. Zero = none.
type FileID struct{ Dev, Ino uint64 }

// Log is an open CRI log; File nil = none.
type Log struct {
	File
	ID FileID
}

// Close may be called of no log, too.
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
