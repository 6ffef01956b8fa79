package server

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestTickets(t *testing.T) {
	now := time.Now()
	all := newTickets(func() time.Time { return now })
	issue := func() string {
		t.Helper()
		token, err := all.issue(func(http.ResponseWriter, *http.Request) {})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	used, late, good := issue(), issue(), ""
	if all.take(used) == nil || all.take(used) != nil || all.take("") != nil {
		t.Error("a ticket is good once, and nothing else is one")
	}
	now = now.Add(ticketFor + 1)
	if all.take(late) != nil {
		t.Error("a ticket outlived its time")
	}
	for range maxTickets {
		good = issue()
	}
	if _, err := all.issue(nil); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("one more than there may be: %v", err)
	}
	if all.take(good) == nil {
		t.Error("the newest ticket is not good")
	}
	now = now.Add(ticketFor + 1)
	issue() // those that nobody used have made room
}
