package ledger

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

// journal is the synced file of debts. The first caller to add an entry writes for all that wait, with
// one fsync and without a lock. Each line begins and ends with a line feed, so that a torn line
// does not damage the next.
type journal struct {
	path string
	gap  error // the file contains unreadable lines; nil = none

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

// openJournal opens the file, which it creates if necessary, and returns the debts in it.
func openJournal(ctx context.Context, path string) (*journal, []*Debt, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the list of network attachments to release: %w", err)
	}
	j := &journal{path: path, live: map[*line]bool{}}
	debts, replaced := j.parse(ctx, data)
	if j.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, nil, fmt.Errorf("open the list of network attachments to release: %w", err)
	}
	for _, l := range replaced {
		_ = j.mark(l) // if this fails, the attachment is released a second time after a later restart
	}
	// Syncs the file's name, once for all future lines.
	if err := syncDir(filepath.Dir(path)); err != nil {
		j.file.Close()
		return nil, nil, fmt.Errorf("open the list of network attachments to release: %w", err)
	}
	return j, debts, nil
}

// parse reads every line that still has a pod's id. A last line without its end is ignored, because
// its ADD never ran. replaced are lines of pods that have a later line.
func (j *journal) parse(ctx context.Context, data []byte) (debts []*Debt, replaced []*line) {
	byPod, garbage := map[string]*Debt{}, 0
	for offset := 0; ; {
		end := bytes.IndexByte(data[offset:], '\n')
		if end < 0 {
			break
		}
		whole := data[offset : offset+end]
		text := bytes.TrimLeft(whole, "\x00") // left by a write that never reached the disk
		if len(text) < len(whole) {
			j.gap = fmt.Errorf("%s has a gap", j.path)
		}
		start := offset + len(whole) - len(text)
		offset += end + 1
		if len(text) == 0 || text[0] != owes {
			j.dead += int64(len(whole)) + 1
			continue
		}
		pod, rest, _ := bytes.Cut(text[1:], []byte(" "))
		if !ValidID.Match(pod) {
			j.dead += int64(len(whole)) + 1
			garbage++
			continue
		}
		d := &Debt{line: &line{at: int64(start), length: int64(len(text)) + 1}}
		if err := d.parse(string(pod), rest); err != nil {
			log.G(ctx).WithError(err).WithField("pod", string(pod)).
				Warn("the record of a network attachment to release is damaged; the current network will release it")
			d.Record = Record{Pod: string(pod)}
			j.gap = fmt.Errorf("the record of the network attachment to release of pod %s is damaged", pod)
		}
		if earlier := byPod[d.Pod]; earlier != nil {
			replaced = append(replaced, earlier.line)
		}
		byPod[d.Pod] = d
	}
	if garbage > 0 {
		j.gap = fmt.Errorf("%d lines of %s do not name a pod", garbage, j.path)
		log.G(ctx).WithField("file", j.path).
			Warnf("skipped %d lines of the list of network attachments to release: they do not name a pod", garbage)
	}
	j.size = int64(len(data))
	for _, d := range byPod {
		debts, j.live[d.line] = append(debts, d), true
	}
	return debts, replaced
}

// add appends a line and syncs it. If ctx ends first, the line is struck later.
func (j *journal) add(ctx context.Context, pod string, record []byte) (*line, error) {
	e := &entry{line: &line{}, text: fmt.Appendf(nil, "\n%c%s %s\n", owes, pod, record), done: make(chan error, 1)}
	j.put(e)
	select {
	case err := <-e.done:
		return e.line, err
	case <-ctx.Done():
		go func() {
			if <-e.done == nil {
				j.put(&entry{line: e.line, done: make(chan error, 1)})
			}
		}()
		return nil, ctx.Err()
	}
}

// strike marks a line as no longer valid, without a sync.
func (j *journal) strike(ctx context.Context, l *line) error {
	e := &entry{line: l, done: make(chan error, 1)}
	j.put(e)
	select {
	case err := <-e.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (j *journal) put(e *entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue = append(j.queue, e)
	if !j.writing {
		j.writing = true
		go j.write()
	}
}

// write processes the queue until it is empty.
func (j *journal) write() {
	for {
		j.mu.Lock()
		batch := j.queue
		j.queue = nil
		if len(batch) == 0 {
			j.writing = false
			j.mu.Unlock()
			return
		}
		j.mu.Unlock()
		err := guard.Call(context.Background(), "network debts", func() error {
			j.strikeAll(batch)
			j.addAll(batch)
			return nil
		})
		if err != nil {
			replyAll(batch, err)
		}
	}
}

// replyAll sends err to the entries of the batch that have no result yet.
func replyAll(batch []*entry, err error) {
	for _, e := range batch {
		select {
		case e.done <- err:
		default:
		}
	}
}

func (j *journal) addAll(batch []*entry) {
	var data []byte
	for _, e := range batch {
		data = append(data, e.text...)
	}
	if len(data) == 0 {
		return
	}
	_, err := j.file.WriteAt(data, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		_ = j.file.Truncate(j.size)
	}
	for _, e := range batch {
		if e.text == nil {
			continue
		}
		if err == nil {
			e.line.at, e.line.length = j.size+1, int64(len(e.text))-1
			j.size += int64(len(e.text))
			j.live[e.line] = true
		}
		e.done <- err
	}
}

func (j *journal) strikeAll(batch []*entry) {
	failed := map[*entry]error{}
	for _, e := range batch {
		if e.text == nil {
			failed[e] = j.mark(e.line)
		}
	}
	if len(failed) == 0 {
		return
	}
	j.shrink()
	for e, err := range failed {
		e.done <- err
	}
}

func (j *journal) mark(l *line) error {
	if _, err := j.file.WriteAt([]byte{struck}, l.at); err != nil {
		return err
	}
	delete(j.live, l)
	j.dead += l.length
	return nil
}

// shrink frees the space of struck lines: it truncates the file when there are no debts, or
// rewrites it when that saves enough.
func (j *journal) shrink() {
	switch {
	case j.size > 0 && len(j.live) == 0:
		if j.file.Truncate(0) == nil {
			j.size, j.dead = 0, 0
		}
	case j.dead > rewriteAt && j.dead > j.size/2:
		if err := j.rewrite(); err != nil {
			// a full disk, for example: do not retry before as many bytes are struck again
			j.dead = 0
		}
	}
}

func (j *journal) rewrite() error {
	tmp, err := os.OpenFile(j.path+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	size := int64(0)
	moved := make(map[*line]int64, len(j.live))
	for l := range j.live {
		text := make([]byte, l.length)
		if _, err = j.file.ReadAt(text, l.at); err == nil {
			_, err = tmp.WriteAt(append([]byte{'\n'}, text...), size)
		}
		if err != nil {
			return errors.Join(err, tmp.Close(), os.Remove(j.path+".tmp"))
		}
		moved[l] = size + 1
		size += 1 + l.length
	}
	if err := tmp.Sync(); err != nil {
		return errors.Join(err, tmp.Close(), os.Remove(j.path+".tmp"))
	}
	if err := os.Rename(j.path+".tmp", j.path); err != nil {
		return errors.Join(err, tmp.Close(), os.Remove(j.path+".tmp"))
	}
	// Without the sync, a crash may leave the old file, which has the same lines.
	_ = syncDir(filepath.Dir(j.path))
	j.file.Close()
	j.file, j.size, j.dead = tmp, size, 0
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
