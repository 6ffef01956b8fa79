package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/registry"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// transfer moves one blob from the registry into the content store, over as many connections as it
// takes.
type transfer struct {
	ft     *fetcher
	desc   ocispec.Descriptor
	w      content.Writer
	offset int64          // bytes written
	pieces bool           // they came over more than one answer
	starts int            // how often we began again
	from   *registry.Host // who sent the last bytes
	coded  bool           // and said that they are compressed for the way
	decode bool           // and they are
	item   *progress.Item
	along  *alongside
}

// wrong says that what a host sends is not the blob. Where the answer is said to be compressed, it
// is asked for again and unpacked: some servers compress although they are asked not to, others say
// so of what is stored compressed and meant like that. From a mirror it is thrown away, and
// somebody else is asked.
func (t *transfer) wrong(h *registry.Host, format string, args ...any) error {
	if t.coded && !t.decode {
		t.decode = true
		return errNoRange
	}
	err := fault.Refuse(errdefs.ErrDataLoss, format, args...)
	if t.ft.reg.Blame(h, err) {
		return errNoRange
	}
	return err
}

// errNoRange says that the server does not continue where we asked it to.
var errNoRange = errors.New("the server does not continue a download")

// run transfers what is missing and commits. Only attempts that bring nothing count against the
// limit.
func (t *transfer) run(ctx context.Context) error {
	for barren := 0; ; {
		before := t.offset
		answered, err := t.piece(ctx)
		if err == nil {
			done, err := t.commit(ctx)
			if done || err != nil {
				return err
			}
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errNoRange) {
			if err := t.restart(); err != nil {
				return err
			}
			continue
		}
		barren++
		if t.offset > before {
			barren = 1
		}
		if barren == registry.MaxAttempts || !answered || !registry.Transient(err) {
			return fmt.Errorf("%d of %d bytes: %w", t.offset, t.desc.Size, err)
		}
		t.pieces = t.offset > 0
		if err := t.ft.prog.Waiting(func() error { return registry.Sleep(ctx, registry.Backoff(barren)) }); err != nil {
			return err
		}
	}
}

// restart throws away what is there, a few times.
func (t *transfer) restart() error {
	if t.starts++; t.starts > registry.MaxAttempts {
		return fault.Unavailable(fmt.Errorf("%s: %w", t.desc.Digest, errNoRange))
	}
	t.along.abandon()
	t.offset, t.pieces = 0, false
	return t.w.Truncate(0)
}

// piece asks for the rest of the blob once. An error without an answer has been tried again often
// enough already.
func (t *transfer) piece(ctx context.Context) (answered bool, err error) {
	if t.offset == t.desc.Size {
		return true, nil
	}
	resp, err := t.ft.reg.Do(ctx, registry.Request{Method: http.MethodGet, Kind: "blobs", Object: t.desc.Digest.String(), Accept: "*/*", Offset: t.offset})
	if err != nil {
		var status *registry.StatusError
		if t.offset > 0 && errors.As(err, &status) && status.Code == http.StatusRequestedRangeNotSatisfiable {
			return true, errNoRange
		}
		return false, err
	}
	defer resp.Body.Close()
	t.from, t.coded = resp.Host, strings.HasSuffix(strings.ToLower(resp.Header.Get("Content-Encoding")), "gzip")
	if t.coded && t.decode {
		if err := unzipBody(resp); err != nil || t.offset > 0 {
			return true, errNoRange
		}
	}
	switch {
	case t.offset == 0 && !whole(resp):
		if err := t.wrong(resp.Host, "%s is answered with %d", t.desc.Digest, resp.StatusCode); err != errNoRange {
			return true, err
		}
		return true, errNoRange
	case t.offset == 0:
		if resp.ContentLength >= 0 && resp.ContentLength != t.desc.Size {
			return true, t.wrong(resp.Host, "%s arrives with %d bytes, its descriptor says %d", t.desc.Digest, resp.ContentLength, t.desc.Size)
		}
	case t.offset > 0 && resp.StatusCode == http.StatusPartialContent:
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", t.offset)) {
			return true, errNoRange
		}
	default:
		return true, errNoRange
	}
	err = t.copy(resp)
	if registry.Transient(err) {
		resp.Host.Failures.Add(1) // a mirror that breaks off twice is left out
	}
	return true, err
}

// whole tells whether an answer has all of a blob: some servers call it a range, some proxies say
// that they have changed something.
func whole(resp *registry.Reply) bool {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNonAuthoritativeInfo:
		return true
	case http.StatusPartialContent:
		return strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes 0-")
	}
	return false
}

// unzipBody unpacks an answer on its way.
func unzipBody(resp *registry.Reply) error {
	plain, err := gzip.NewReader(resp.Body)
	if err != nil {
		return err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{plain, resp.Body}
	resp.ContentLength = -1
	return nil
}

func (t *transfer) copy(from *registry.Reply) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Body.Read(buf)
		if int64(n) > t.desc.Size-t.offset {
			return t.wrong(from.Host, "%s arrives longer than the %d bytes its descriptor says", t.desc.Digest, t.desc.Size)
		}
		if n > 0 {
			if _, err := t.w.Write(buf[:n]); err != nil {
				return fmt.Errorf("write blob %s: %w", t.desc.Digest, fault.Disk(err))
			}
			t.offset += int64(n)
			t.item.Done.Store(t.offset)
			t.along.advance(t.offset)
		}
		switch {
		case err == io.EOF && t.offset < t.desc.Size && (!from.Host.Own || t.coded && !t.decode): // not broken off: that is all
			return t.wrong(from.Host, "%s ends after %d of %d bytes", t.desc.Digest, t.offset, t.desc.Size)
		case err == io.EOF && t.offset < t.desc.Size:
			return fault.Unavailable(fmt.Errorf("%s ends after %d of %d bytes", t.desc.Digest, t.offset, t.desc.Size))
		case err == io.EOF:
			return nil
		case t.decode && errors.Is(err, io.ErrUnexpectedEOF):
			return fault.Unavailable(fmt.Errorf("%s ends in the middle: %w", t.desc.Digest, err))
		case err != nil:
			return err
		}
	}
}

// commit verifies and names the blob. Wrong bytes get one more chance from the start where a mirror
// sent them, which is then left out, or where they were put together from several answers.
func (t *transfer) commit(ctx context.Context) (done bool, err error) {
	if got := t.w.Digest(); got != t.desc.Digest {
		if t.coded && !t.decode {
			t.decode = true
			return false, t.restart()
		}
		err := fault.Refuse(errdefs.ErrDataLoss, "blob arrives with digest %s, not %s", got, t.desc.Digest)
		if t.ft.reg.Blame(t.from, err) || t.pieces {
			return false, t.restart()
		}
		return true, err
	}
	err = t.ft.prog.Waiting(func() error { return t.w.Commit(ctx, t.desc.Size, t.desc.Digest) }) // it syncs
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return true, fmt.Errorf("commit blob %s: %w", t.desc.Digest, fault.Disk(err))
	}
	return true, nil
}
