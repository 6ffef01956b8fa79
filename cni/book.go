package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/guard"
)

// book is the synced file of debts. The first caller to add an entry writes for all that wait, with
// one fsync and without a lock. Each line begins and ends with a line feed, so that a torn line
// does not damage the next.
type book struct {
	path string
	odd  error // the file contains unreadable lines; nil = none

	mu      sync.Mutex
	queue   []*entry
	writing bool

	// Owned by the goroutine that is writing.
	file *os.File
	size int64 // offset of the next line
	dead int64 // bytes of struck lines
	live map[*line]bool
}

// line is the position of a debt in the file. Only the goroutine that is writing uses its fields.
type line struct{ at, length int64 }

// entry is one request: to add a line with this text or, without a text, to strike the line.
type entry struct {
	line *line
	text []byte
	done chan error // buffered
}

const (
	// rewriteAt is the number of bytes of struck lines from which on the file is rewritten, if they
	// are more than the rest.
	rewriteAt = 1 << 20
	owes      = '+'
	struck    = '-'
)

// openBook opens the file, which it creates if necessary, and returns the debts in it.
func openBook(ctx context.Context, path string) (*book, []*debt, error) {
	data, err := readOptional(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the list of network attachments to release: %w", err)
	}
	b := &book{path: path, live: map[*line]bool{}}
	debts, replaced := b.parse(ctx, data)
	if b.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, nil, fmt.Errorf("open the list of network attachments to release: %w", err)
	}
	for _, l := range replaced {
		_ = b.mark(l) // if this fails, the debt is paid a second time after a later restart
	}
	// Syncs the file's name, once for all future lines.
	if err := syncDir(filepath.Dir(path)); err != nil {
		b.file.Close()
		return nil, nil, fmt.Errorf("open the list of network attachments to release: %w", err)
	}
	return b, debts, nil
}

// parse reads every line that still has a pod's id. A last line without its end is ignored, because
// its ADD never ran. replaced are lines of pods that have a later line.
func (b *book) parse(ctx context.Context, data []byte) (debts []*debt, replaced []*line) {
	byPod, garbage := map[string]*debt{}, 0
	for offset := 0; ; {
		end := bytes.IndexByte(data[offset:], '\n')
		if end < 0 {
			break
		}
		whole := data[offset : offset+end]
		text := trimHole(whole)
		if len(text) < len(whole) {
			b.odd = fmt.Errorf("%s has a gap", b.path)
		}
		start := offset + len(whole) - len(text)
		offset += end + 1
		if len(text) == 0 || text[0] != owes {
			b.dead += int64(len(whole)) + 1
			continue
		}
		pod, rest, _ := bytes.Cut(text[1:], []byte(" "))
		if !podID.Match(pod) {
			b.dead += int64(len(whole)) + 1
			garbage++
			continue
		}
		d := &debt{line: &line{at: int64(start), length: int64(len(text)) + 1}}
		if err := d.parse(string(pod), rest); err != nil {
			log.G(ctx).WithError(err).WithField("pod", string(pod)).Warn("the record of a network attachment to release is damaged; the current network will release it")
			d.record = record{Pod: string(pod)}
			b.odd = fmt.Errorf("the record of the network attachment to release of pod %s is damaged", pod)
		}
		if earlier := byPod[d.Pod]; earlier != nil {
			replaced = append(replaced, earlier.line)
		}
		byPod[d.Pod] = d
	}
	if garbage > 0 {
		b.odd = fmt.Errorf("%d lines of %s do not name a pod", garbage, b.path)
		log.G(ctx).WithField("file", b.path).Warnf("skipped %d lines of the list of network attachments to release: they do not name a pod", garbage)
	}
	b.size = int64(len(data))
	for _, d := range byPod {
		debts, b.live[d.line] = append(debts, d), true
	}
	return debts, replaced
}

// add appends a line and syncs it. If ctx ends first, the line is struck later.
func (b *book) add(ctx context.Context, pod string, record []byte) (*line, error) {
	e := &entry{line: &line{}, text: fmt.Appendf(nil, "\n%c%s %s\n", owes, pod, record), done: make(chan error, 1)}
	b.put(e)
	select {
	case err := <-e.done:
		return e.line, err
	case <-ctx.Done():
		go func() {
			if <-e.done == nil {
				b.put(&entry{line: e.line, done: make(chan error, 1)})
			}
		}()
		return nil, ctx.Err()
	}
}

// strike marks a line as paid, without a sync.
func (b *book) strike(ctx context.Context, l *line) error {
	e := &entry{line: l, done: make(chan error, 1)}
	b.put(e)
	select {
	case err := <-e.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *book) put(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, e)
	if !b.writing {
		b.writing = true
		go b.write()
	}
}

// write processes the queue until it is empty.
func (b *book) write() {
	for {
		b.mu.Lock()
		batch := b.queue
		b.queue = nil
		if len(batch) == 0 {
			b.writing = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		err := guard.Call(context.Background(), "network debts", func() error {
			b.strikeAll(batch)
			b.addAll(batch)
			return nil
		})
		if err != nil {
			tellAll(batch, err)
		}
	}
}

// tellAll sends err to the entries of the batch that have no result yet.
func tellAll(batch []*entry, err error) {
	for _, e := range batch {
		select {
		case e.done <- err:
		default:
		}
	}
}

func (b *book) addAll(batch []*entry) {
	var data []byte
	for _, e := range batch {
		data = append(data, e.text...)
	}
	if len(data) == 0 {
		return
	}
	_, err := b.file.WriteAt(data, b.size)
	if err == nil {
		err = b.file.Sync()
	}
	if err != nil {
		_ = b.file.Truncate(b.size)
	}
	for _, e := range batch {
		if e.text == nil {
			continue
		}
		if err == nil {
			e.line.at, e.line.length = b.size+1, int64(len(e.text))-1
			b.size += int64(len(e.text))
			b.live[e.line] = true
		}
		e.done <- err
	}
}

func (b *book) strikeAll(batch []*entry) {
	failed := map[*entry]error{}
	for _, e := range batch {
		if e.text == nil {
			failed[e] = b.mark(e.line)
		}
	}
	if len(failed) == 0 {
		return
	}
	b.shrink()
	for e, err := range failed {
		e.done <- err
	}
}

func (b *book) mark(l *line) error {
	if _, err := b.file.WriteAt([]byte{struck}, l.at); err != nil {
		return err
	}
	delete(b.live, l)
	b.dead += l.length
	return nil
}

// shrink frees the space of struck lines: it truncates the file when there are no debts, or
// rewrites it when that saves enough.
func (b *book) shrink() {
	switch {
	case b.size > 0 && len(b.live) == 0:
		if b.file.Truncate(0) == nil {
			b.size, b.dead = 0, 0
		}
	case b.dead > rewriteAt && b.dead > b.size/2:
		if err := b.rewrite(); err != nil {
			// a full disk, for example: do not retry before as many bytes are struck again
			b.dead = 0
		}
	}
}

func (b *book) rewrite() error {
	tmp, err := os.OpenFile(b.path+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	size := int64(0)
	moved := make(map[*line]int64, len(b.live))
	for l := range b.live {
		text := make([]byte, l.length)
		if _, err = b.file.ReadAt(text, l.at); err == nil {
			_, err = tmp.WriteAt(append([]byte{'\n'}, text...), size)
		}
		if err != nil {
			return errors.Join(err, tmp.Close(), os.Remove(b.path+".tmp"))
		}
		moved[l] = size + 1
		size += 1 + l.length
	}
	if err := tmp.Sync(); err != nil {
		return errors.Join(err, tmp.Close(), os.Remove(b.path+".tmp"))
	}
	if err := os.Rename(b.path+".tmp", b.path); err != nil {
		return errors.Join(err, tmp.Close(), os.Remove(b.path+".tmp"))
	}
	// Without the sync, a crash may leave the old file, which has the same lines.
	_ = syncDir(filepath.Dir(b.path))
	b.file.Close()
	b.file, b.size, b.dead = tmp, size, 0
	for l, at := range moved {
		l.at = at
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}
