package harness

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// Patience is how long a test waits for something that should be there soon. It bounds a hang; it
// measures nothing.
const Patience = 30 * time.Second

// ledgerPatience is how long things may take to go away after the last request was answered;
// clients that say nothing have five seconds of it.
const ledgerPatience = 30 * time.Second

// Eventually asks until check has nothing to complain about.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	if err := Within(Patience, check); err != nil {
		t.Fatalf("waited %s for %s: %v", Patience, what, err)
	}
}

// Within returns the last complaint of check, or nil as soon as there is none.
func Within(deadline time.Duration, check func() error) error {
	end := time.After(deadline)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-end:
			return err
		case <-again.C:
		}
	}
}

// Unless turns a condition into a complaint.
func Unless(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// WantEqual compares two messages field by field.
func WantEqual(t testing.TB, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s is\n%v\nwant\n%v", what, got, want)
	}
}
