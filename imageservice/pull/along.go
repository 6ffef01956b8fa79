package pull

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/internal/guard"
)

// alongside unpacks a layer during its download: it reads the partial file while it grows. Other
// pulls cannot see or wait for the result until the blob is verified, because the registry may be
// slow. The methods of a nil alongside do nothing.
type alongside struct {
	ft     *fetcher
	blob   digest.Digest
	file   *os.File
	result chan error
	layer  *layers.Layer
	finish func()

	mu   sync.Mutex
	more *sync.Cond
	have int64 // bytes in file
	read int64
	err  error // why no more bytes will come; io.EOF after a complete download
	void bool  // the bytes that were read are not those of the blob
}

// errAbandoned means that the download restarted from the beginning.
var errAbandoned = errors.New("download restarted")

// unpackAlong starts unpacking during the download. It returns nil if the layer exists already, if
// another pull is unpacking it, or if all slots for this are in use; then the layer is unpacked
// after its download.
func (ft *fetcher) unpackAlong(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest) *alongside {
	if ft.by.layers.Any(diffID) != nil {
		return nil
	}
	release, ok := ft.by.claims.Try("along " + string(diffID))
	if !ok {
		return nil
	}
	if !ft.by.alongs.TryAcquire(1) {
		release()
		return nil
	}
	a := &alongside{ft: ft, blob: desc.Digest, result: make(chan error, 1),
		finish: func() { ft.by.alongs.Release(1); release() }}
	a.more = sync.NewCond(&a.mu)
	go func() {
		stop := context.AfterFunc(ctx, func() { a.close(context.Cause(ctx)) })
		defer stop()
		it := &progress.Item{}
		a.result <- guard.Call(ctx, "unpacking during the download", func() (err error) {
			a.layer, err = ft.unpacker.Unpack(ctx, layers.Source{Reader: &growing{a, desc}, Size: desc.Size, Arrived: a.arrived},
				diffID, nil, it)
			return err
		})
	}()
	return a
}

// growing reads the partial file, and waits at its end for more.
type growing struct {
	*alongside
	desc ocispec.Descriptor
}

func (g *growing) Read(b []byte) (int, error) {
	g.mu.Lock()
	for g.read == g.have && g.err == nil {
		g.more.Wait()
	}
	n, err := min(int64(len(b)), g.have-g.read), g.err
	g.mu.Unlock()
	if n == 0 || err != nil && err != io.EOF {
		return 0, err
	}
	if g.file == nil {
		f, err := os.Open(g.ft.by.blobs.IngestFile(g.ft.ref.IngestRef(g.desc.Digest)))
		if os.IsNotExist(err) {
			f, err = os.Open(g.ft.by.blobs.Path(g.desc.Digest)) // the blob was committed before the first read
		}
		if err != nil {
			return 0, err
		}
		g.file = f
	}
	got, err := g.file.ReadAt(b[:n], g.read)
	g.read += int64(got)
	if got > 0 {
		err = nil
	}
	return got, err
}

// advance sets the number of bytes in the file.
func (a *alongside) advance(n int64) {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.have = n
	a.mu.Unlock()
	a.more.Broadcast()
}

// arrived returns the number of bytes in the file.
func (a *alongside) arrived() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.have
}

func (a *alongside) close(err error) {
	a.mu.Lock()
	if a.err == nil {
		a.err = err
	}
	a.mu.Unlock()
	a.more.Broadcast()
}

// abandon ends the unpacking, because the bytes that it has read are invalid.
func (a *alongside) abandon() {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.void = true
	a.mu.Unlock()
	a.close(errAbandoned)
}

// end waits for the unpacking, and returns the result of both. download is the result of the
// download. If the unpacking was abandoned, or was too far ahead of the download, that is not an
// error: the layer is unpacked later.
func (a *alongside) end(download error) error {
	if a == nil {
		return download
	}
	defer a.finish()
	if download != nil {
		a.close(download)
	} else {
		a.close(io.EOF)
	}
	err := <-a.result
	if a.file != nil {
		a.file.Close()
	}
	a.mu.Lock()
	void := a.void || errors.Is(err, layers.ErrAhead)
	a.mu.Unlock()
	if download != nil || void {
		if err == nil {
			_ = a.ft.by.layers.Remove(a.layer.Dir) // if this fails, the next Open deletes it
		}
		return download // the result of unpacking invalid bytes does not matter
	}
	if err != nil {
		return err
	}
	a.ft.by.blobs.NoteUnpacked(a.blob, a.layer.DiffID)
	a.ft.by.layers.Add(a.layer)
	return nil
}
