package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/gunzip"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/registry"
)

// transfer downloads one blob from the registry to the content store, over as many connections as
// needed.
type transfer struct {
	ft     *fetcher
	desc   ocispec.Descriptor
	w      *content.Writer
	offset int64          // bytes written
	pieces bool           // they came in more than one response
	starts int            // number of restarts from the beginning
	from   *registry.Host // host that sent the last bytes
	coded  bool           // that response had Content-Encoding gzip
	decode bool           // decompress responses with Content-Encoding gzip
	item   *progress.Item
	along  *alongside
}

// wrong handles content that is not the blob. If the response had Content-Encoding gzip, the blob
// is requested again and decompressed: some servers compress although the request forbids it,
// others set the header for blobs that are stored compressed. If a mirror sent the content, it is
// discarded and another host is asked. wrong returns errNoRange if the download must restart.
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

// errNoRange means that the server does not continue at the requested offset.
var errNoRange = errors.New("the server cannot resume a download")

// run downloads the missing bytes and commits the blob. Only attempts that transfer nothing count
// against the limit.
func (t *transfer) run(ctx context.Context) error {
	for barren := 0; ; {
		before := t.offset
		answered, err := t.piece(ctx)
		if err == nil {
			done, err := t.commit()
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

// restart discards the bytes so far. It returns an error after too many restarts.
func (t *transfer) restart() error {
	if t.starts++; t.starts > registry.MaxAttempts {
		return fault.Unavailable(fmt.Errorf("%s: %w", t.desc.Digest, errNoRange))
	}
	t.along.abandon()
	t.offset, t.pieces = 0, false
	return t.w.Restart()
}

// piece requests the rest of the blob once. answered is false if there was no response; then the
// request was already retried often enough.
func (t *transfer) piece(ctx context.Context) (answered bool, err error) {
	if t.offset == t.desc.Size {
		return true, nil
	}
	resp, err := t.ft.reg.Do(ctx, registry.Request{Method: http.MethodGet, Kind: "blobs", Object: t.desc.Digest.String(),
		Accept: "*/*", Offset: t.offset})
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
		if err := t.wrong(resp.Host, "the answer for %s has status %d", t.desc.Digest, resp.StatusCode); err != errNoRange {
			return true, err
		}
		return true, errNoRange
	case t.offset == 0:
		if resp.ContentLength >= 0 && resp.ContentLength != t.desc.Size {
			return true, t.wrong(resp.Host, "%s is announced with %d bytes, but its descriptor says %d",
				t.desc.Digest, resp.ContentLength, t.desc.Size)
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
		resp.Host.Failures.Add(1) // a mirror whose connections break twice is asked last
	}
	return true, err
}

// whole reports whether a response has the complete blob: some servers send it as a range, and some
// proxies say that they have changed it.
func whole(resp *registry.Reply) bool {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNonAuthoritativeInfo:
		return true
	case http.StatusPartialContent:
		return strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes 0-")
	}
	return false
}

// unzipBody decompresses a response while it is read.
func unzipBody(resp *registry.Reply) error {
	plain, err := gunzip.NewReader(resp.Body)
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
			return t.wrong(from.Host, "%s is longer than the %d bytes that its descriptor says", t.desc.Digest, t.desc.Size)
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
		// a complete response that is too short
		case err == io.EOF && t.offset < t.desc.Size && (!from.Host.Own || t.coded && !t.decode):
			return t.wrong(from.Host, "%s ends after %d of %d bytes", t.desc.Digest, t.offset, t.desc.Size)
		case err == io.EOF && t.offset < t.desc.Size:
			return fault.Unavailable(fmt.Errorf("%s ends after %d of %d bytes", t.desc.Digest, t.offset, t.desc.Size))
		case err == io.EOF:
			return nil
		case t.decode && errors.Is(err, io.ErrUnexpectedEOF):
			return fault.Unavailable(fmt.Errorf("%s ends early: %w", t.desc.Digest, err))
		case err != nil:
			return err
		}
	}
}

// commit verifies the digest and commits the blob. Wrong bytes are downloaded once more from the
// beginning if a mirror sent them, which is then no longer used, or if they come from several
// responses.
func (t *transfer) commit() (done bool, err error) {
	if got := t.w.Digest(); got != t.desc.Digest {
		if t.coded && !t.decode {
			t.decode = true
			return false, t.restart()
		}
		err := fault.Refuse(errdefs.ErrDataLoss, "blob has digest %s, not %s", got, t.desc.Digest)
		if t.ft.reg.Blame(t.from, err) || t.pieces {
			return false, t.restart()
		}
		return true, err
	}
	if err := t.ft.prog.Waiting(func() error { return t.w.Commit(t.desc) }); err != nil {
		return true, fmt.Errorf("commit blob %s: %w", t.desc.Digest, fault.Disk(err))
	}
	return true, nil
}
