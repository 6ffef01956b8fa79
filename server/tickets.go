package server

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

// tickets are the streaming URLs that were given out and not used yet. Whoever has one may stream once, without being asked who he is: so
// it cannot be guessed, and is good for a minute.
type tickets struct {
	now func() time.Time

	mu  sync.Mutex // guards what follows
	all map[string]ticket
}

type ticket struct {
	serve http.HandlerFunc
	until time.Time
}

func newTickets(now func() time.Time) *tickets { return &tickets{now: now, all: map[string]ticket{}} }

// issue returns the 256 random bits for which serve is called once. ErrResourceExhausted while too many wait.
func (t *tickets) issue(serve http.HandlerFunc) (string, error) {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	token := base64.RawURLEncoding.EncodeToString(secret)
	t.mu.Lock()
	defer t.mu.Unlock()
	for old, one := range t.all {
		if t.now().After(one.until) {
			delete(t.all, old)
		}
	}
	if len(t.all) >= maxTickets {
		return "", fmt.Errorf("%d streams were asked for and not begun: %w", len(t.all), errdefs.ErrResourceExhausted)
	}
	t.all[token] = ticket{serve: serve, until: t.now().Add(ticketFor)}
	return token, nil
}

// take uses a ticket up; nil when there is none, or its time is over.
func (t *tickets) take(token string) http.HandlerFunc {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.all[token]
	delete(t.all, token)
	if t.now().After(one.until) {
		return nil
	}
	return one.serve
}
