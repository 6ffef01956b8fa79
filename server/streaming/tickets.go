package streaming

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	ticketFor  = time.Minute // from the answer with the URL to its use
	maxTickets = 1000        // that wait to be used
)

// tickets are the streaming URLs that were given out and not used yet. Whoever has one may stream
// once, without being asked who he is: so it cannot be guessed, and is good for a minute.
type tickets struct {
	mu  sync.Mutex // guards all
	all map[string]ticket
}

type ticket struct {
	serve http.HandlerFunc
	end   *time.Timer // takes it back
}

func newTickets() *tickets { return &tickets{all: map[string]ticket{}} }

// issue returns the 256 random bits for which serve is called once. ErrResourceExhausted while too
// many wait.
func (t *tickets) issue(serve http.HandlerFunc) (string, error) {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	token := base64.RawURLEncoding.EncodeToString(secret)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= maxTickets {
		return "", fmt.Errorf("%d streams were asked for and not begun: %w", len(t.all), errdefs.ErrResourceExhausted)
	}
	t.all[token] = ticket{serve: serve, end: time.AfterFunc(ticketFor, func() { t.take(token) })}
	return token, nil
}

// take uses a ticket up; nil when there is none, or its time is over.
func (t *tickets) take(token string) http.HandlerFunc {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.all[token]
	if !ok {
		return nil
	}
	one.end.Stop()
	delete(t.all, token)
	return one.serve
}
