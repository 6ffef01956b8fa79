package crilog

import (
	"bytes"
	"time"
)

// The CRI log format (kubelet, pkg/kubelet/kuberuntime/logs):
//
//	2026-01-02T03:04:05.000000006Z stdout F content
//
// One line of output is zero or more pieces tagged P and one tagged F. A piece has at most MaxPiece
// bytes. It is tagged P if the line continues after it, or if the output ended without a newline.
// How a stream is split depends only on its bytes, never on how they arrived, so that an
// interrupted write can be repeated with identical bytes.
const MaxPiece = 16 << 10

const (
	timeFormat = "2006-01-02T15:04:05.000000000Z" // RFC 3339 with all nine digits
	tagAt      = len(timeFormat) + len(" stdout ")
	prefixLen  = tagAt + len("F ")
	MaxLine    = prefixLen + MaxPiece + 1 // the longest line in a log
)

// StreamNames are of equal length, so that all prefixes are.
var StreamNames = [2]string{"stdout", "stderr"}

type prefix [prefixLen]byte

func newPrefix(stream int, at time.Time) prefix {
	var p prefix
	b := at.UTC().AppendFormat(p[:0], timeFormat)
	b = append(append(append(b, ' '), StreamNames[stream]...), " F "...)
	copy(p[:], b)
	return p
}

// appendLines formats the beginning of src into the spare capacity of dst, without allocation. It
// returns dst and how many bytes of src it has used. The rest of src is an unfinished piece or did
// not fit. With final the unfinished piece is written too, tagged P.
func appendLines(dst []byte, prefix *prefix, src []byte, final bool) ([]byte, int) {
	n, used := len(dst), 0
	dst = dst[:cap(dst)]
	for used < len(src) {
		piece := src[used:min(len(src), used+MaxPiece+1)]
		tag, skip := byte('F'), 1
		if i := bytes.IndexByte(piece, '\n'); i >= 0 {
			piece = piece[:i]
		} else {
			if len(piece) <= MaxPiece && !final {
				break
			}
			piece = piece[:min(len(piece), MaxPiece)]
			tag, skip = 'P', 0
		}
		if len(dst)-n <= prefixLen+len(piece) {
			break
		}
		copy(dst[n:], prefix[:])
		dst[n+tagAt] = tag
		n += prefixLen
		n += copy(dst[n:], piece)
		dst[n] = '\n'
		n++
		used += len(piece) + skip
	}
	return dst[:n], used
}
