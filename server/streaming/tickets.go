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
	ticketFor  = time.Minute // from the response with the URL to its use
	maxTickets = 1000        // issued and not used yet
)

// tickets are the issued streaming URLs that have not been used yet. A ticket lets its owner stream
// once, without further authentication. So it cannot be guessed, and expires after a minute.
type tickets struct {
	mu  sync.Mutex // guards all
	all map[string]ticket
}

type ticket struct {
	serve http.HandlerFunc
	end   *time.Timer // removes the ticket
}

func newTickets() *tickets { return &tickets{all: map[string]ticket{}} }

// issue returns a token of 256 random bits for one call of serve. It returns ErrResourceExhausted
// if too many tickets are unused.
func (t *tickets) issue(serve http.HandlerFunc) (string, error) {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	token := base64.RawURLEncoding.EncodeToString(secret)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= maxTickets {
		return "", fmt.Errorf("%d streams were requested and have not started: %w", len(t.all), errdefs.ErrResourceExhausted)
	}
	t.all[token] = ticket{serve: serve, end: time.AfterFunc(ticketFor, func() { t.take(token) })}
	return token, nil
}

// take removes a ticket and returns its handler; nil if the ticket is unknown, used or expired.
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
