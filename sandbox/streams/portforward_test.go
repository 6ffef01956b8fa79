package streams

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// port takes what it is sent.
type port struct {
	got    []byte
	closed bool
}

func (p *port) Write(b []byte) (int, error) {
	p.got = append(p.got, b...)
	return len(b), nil
}

func (p *port) CloseWrite() error {
	p.closed = true
	return nil
}

// TestUploadAfterAnswer: a client that goes on sending after the pod has closed its side is not cut
// as long as the pod takes something now and then; one that has nothing more is not waited for
// long.
func TestUploadAfterAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &port{}
		up := upload{to: to, ended: make(chan struct{})}
		client, sends := io.Pipe()
		go up.run(client)
		const pieces, pause = 10, afterAnswer * 3 / 4
		go func() {
			for range pieces {
				time.Sleep(pause)
				_, _ = sends.Write([]byte("x"))
			}
		}()
		began := time.Now()
		up.wait(t.Context())
		if len(to.got) != pieces || to.closed {
			t.Errorf("cut after %v: %d of %d pieces have arrived", time.Since(began), len(to.got), pieces)
		}
		if silent := time.Since(began) - pieces*pause; silent > 2*afterAnswer {
			t.Errorf("a client that was silent was waited for %v", silent)
		}
		client.Close() // as a reset does
		<-up.ended
	})
}

// TestUploadEnds: nobody waits for a client that has sent all.
func TestUploadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &port{}
		up := upload{to: to, ended: make(chan struct{})}
		client, sends := io.Pipe()
		go up.run(client)
		go sends.Close()
		began := time.Now()
		if up.wait(t.Context()); time.Since(began) != 0 || !to.closed {
			t.Errorf("waited %v, the pod was told: %v", time.Since(began), to.closed)
		}
	})
}
