package client

import (
	"encoding/json"
	"os"
	"time"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// watch keeps a watch of the shim open until the client ends.
func (k *Client) watch() {
	for k.ctx.Err() == nil {
		guard.Run(k.ctx, "the watch of the shim", k.watchOnce)
		// The watch ended: the shim is dead (keep restarts it), or has disconnected us.
		select {
		case <-k.ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// watchOnce handles the shim's messages until the connection breaks.
func (k *Client) watchOnce() {
	_, _ = k.shim.stream(k.ctx, "watch", struct{}{}, nil, nil, func(raw json.RawMessage, files []*os.File) error {
		unixfd.CloseAll(files)
		var w wire.Watched
		if err := json.Unmarshal(raw, &w); err != nil {
			return err
		}
		for _, t := range w.Tasks {
			k.sawExit(t)
		}
		return nil
	})
}

// sawExit finishes the log of an exited task and queues the exit for OnExit, once. Each task has
// its own goroutine, so that a log that cannot be written delays only its own exit.
func (k *Client) sawExit(t runtimeshim.Task) {
	if t.Exit == nil || k.c.OnExit == nil {
		return
	}
	k.mu.Lock()
	told := k.told[t.ID]
	k.told[t.ID] = true
	k.mu.Unlock()
	if told {
		return
	}
	k.work.Go(func() {
		guard.Run(k.ctx, "the end of a log", func() { k.finishLog(k.ctx, t.ID) })
		k.mu.Lock()
		k.exits = append(k.exits, t)
		k.mu.Unlock()
		select {
		case k.more <- struct{}{}:
		default:
		}
	})
}

// deliver calls OnExit until the client ends.
func (k *Client) deliver() {
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.more:
		}
		k.mu.Lock()
		exits := k.exits
		k.exits = nil
		k.mu.Unlock()
		for _, t := range exits {
			if k.ctx.Err() != nil {
				return // the next client delivers it
			}
			guard.Run(k.ctx, "the report of an exit", func() {
				k.c.Step.Pass("client.exit")
				k.c.OnExit(t)
			})
		}
	}
}
