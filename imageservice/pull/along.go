package pull

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/progress"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/internal/guard"
)

// alongside unpacks a layer while it is being downloaded: it reads the partial file as it grows.
// What it makes is not known to anybody before the blob is verified, and nobody waits for it: it
// moves at a stranger's pace. A nil alongside does nothing.
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
	err  error // why no more come; io.EOF at the good end
	void bool  // what was read is not what the blob has
}

// errAbandoned: the download began again from the start.
var errAbandoned = errors.New("download began again")

// unpackAlong starts unpacking if nobody has the layer or is at the same, and one of the places
// that are kept for this is free; else it returns nil, and the layer is unpacked when its download
// is over.
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
	a := &alongside{ft: ft, blob: desc.Digest, result: make(chan error, 1), finish: func() { ft.by.alongs.Release(1); release() }}
	a.more = sync.NewCond(&a.mu)
	go func() {
		stop := context.AfterFunc(ctx, func() { a.close(context.Cause(ctx)) })
		defer stop()
		it := &progress.Item{}
		a.result <- guard.Call(ctx, "unpacking along", func() (err error) {
			a.layer, err = ft.unpacker.Unpack(ctx, layers.Source{Reader: &growing{a, desc}, Size: desc.Size, Arrived: a.arrived}, diffID, nil, it)
			return err
		})
	}()
	return a
}

// growing reads the partial file, waiting for more at its end.
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
			f, err = os.Open(g.ft.by.blobs.Path(g.desc.Digest)) // committed before we came to it
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

// advance tells that the file has n bytes.
func (a *alongside) advance(n int64) {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.have = n
	a.mu.Unlock()
	a.more.Broadcast()
}

// arrived is how many bytes of the blob are here.
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

// abandon ends the unpacking: the bytes it read are void.
func (a *alongside) abandon() {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.void = true
	a.mu.Unlock()
	a.close(errAbandoned)
}

// end takes the download's outcome and returns the outcome of both. An unpacking that was
// abandoned, or went ahead of what had arrived, is no error: it is done later.
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
			_ = a.ft.by.layers.Remove(a.layer.Dir) // if it cannot be, it is an orphan for the next Open
		}
		return download // what unpacking made of void bytes, an error or not, says nothing
	}
	if err != nil {
		return err
	}
	a.ft.by.blobs.NoteUnpacked(a.blob, a.layer.DiffID)
	a.ft.by.layers.Add(a.layer)
	return nil
}
