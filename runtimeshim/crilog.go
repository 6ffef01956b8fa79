package runtimeshim

import (
	"bytes"
	"time"
)

// The CRI log format (kubelet, pkg/kubelet/kuberuntime/logs):
//
//	2026-01-02T03:04:05.000000006Z stdout F content
//
// One output line is zero or more pieces tagged P and one tagged F. A piece
// has at most maxPiece bytes, and is P exactly when the line goes on after
// it, or when the output ended without a newline. How a stream is cut depends
// on its bytes alone, never on how they arrived: so an interrupted write can
// be made again byte by byte.
const maxPiece = 16 << 10

const (
	criTime      = "2006-01-02T15:04:05.000000000Z" // RFC 3339 with all nine digits
	criTag       = len(criTime) + len(" stdout ")
	criPrefixLen = criTag + len("F ")
	maxRecord    = criPrefixLen + maxPiece + 1 // the longest line of a log
)

// streamNames: both have six letters, so that every prefix has one length.
var streamNames = [2]string{"stdout", "stderr"}

type criPrefix [criPrefixLen]byte

func newCRIPrefix(stream int, at time.Time) criPrefix {
	var p criPrefix
	b := at.UTC().AppendFormat(p[:0], criTime)
	b = append(append(append(b, ' '), streamNames[stream]...), " F "...)
	copy(p[:], b)
	return p
}

// appendCRI formats the beginning of src into the free room of dst (its
// capacity; nothing is allocated) and returns dst and how much of src is in
// it. What is left of src is either an unfinished piece or did not fit. With
// final the unfinished piece is written too, tagged P.
func appendCRI(dst []byte, prefix *criPrefix, src []byte, final bool) ([]byte, int) {
	n, used := len(dst), 0
	dst = dst[:cap(dst)]
	for used < len(src) {
		piece := src[used:min(len(src), used+maxPiece+1)]
		tag, skip := byte('F'), 1
		if i := bytes.IndexByte(piece, '\n'); i >= 0 {
			piece = piece[:i]
		} else {
			if len(piece) <= maxPiece && !final {
				break
			}
			piece = piece[:min(len(piece), maxPiece)]
			tag, skip = 'P', 0
		}
		if len(dst)-n <= criPrefixLen+len(piece) {
			break
		}
		copy(dst[n:], prefix[:])
		dst[n+criTag] = tag
		n += criPrefixLen
		n += copy(dst[n:], piece)
		dst[n] = '\n'
		n++
		used += len(piece) + skip
	}
	return dst[:n], used
}
