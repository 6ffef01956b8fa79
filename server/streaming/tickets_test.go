package streaming

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestTickets(t *testing.T) { synctest.Test(t, testTickets) }

func testTickets(t *testing.T) {
	all := newTickets()
	issue := func() string {
		t.Helper()
		token, err := all.issue(func(http.ResponseWriter, *http.Request) {})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	later := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
	}
	used, late, good := issue(), issue(), ""
	if all.take(used) == nil || all.take(used) != nil || all.take("") != nil {
		t.Error("a ticket is good once, and nothing else is one")
	}
	later(ticketFor)
	if all.take(late) != nil {
		t.Error("a ticket outlived its time")
	}
	for range maxTickets {
		good = issue()
	}
	if _, err := all.issue(nil); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("one more than there may be: %v", err)
	}
	later(ticketFor - time.Nanosecond)
	if all.take(good) == nil {
		t.Error("the newest ticket is not good")
	}
	later(time.Nanosecond)
	if n := len(all.all); n != 0 {
		t.Errorf("%d tickets that nobody used and nobody can are kept, with what they hold", n)
	}
}
