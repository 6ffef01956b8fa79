package logger

import "sync"

// worker does pieces of work one after the other, in a goroutine that exists only while there is
// work.
type worker struct {
	pump func(ready uint8) // called with the bits set by wake

	mu      sync.Mutex
	queue   []func()
	ready   uint8 // bits of streams, and tick
	running bool
}

// post queues a piece of work.
func (w *worker) post(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, f)
	w.start()
}

// wake reports that streams may be readable, or that a tick is due.
func (w *worker) wake(ready uint8) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready |= ready
	w.start()
}

func (w *worker) start() {
	if !w.running {
		w.running = true
		go w.run()
	}
}

func (w *worker) run() {
	for {
		w.mu.Lock()
		queue, ready := w.queue, w.ready
		w.queue, w.ready = nil, 0
		if len(queue) == 0 && ready == 0 {
			w.running = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		for _, f := range queue {
			f()
		}
		if ready != 0 {
			w.pump(ready)
		}
	}
}
