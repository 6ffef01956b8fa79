package logger

import "sync"

// worker does pieces of work one after the other, in a goroutine that exists
// only while there is some.
type worker struct {
	pump func(ready uint8) // what is to be done when something is ready

	mu      sync.Mutex
	queue   []func()
	ready   uint8 // bits of streams, tick
	running bool
}

// post adds a piece of work.
func (w *worker) post(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, f)
	w.start()
}

// wake says that streams may have something to read, or that it is time.
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
