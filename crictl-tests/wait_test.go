package crictltests

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// patience is how long a test waits for something that should be there soon. It bounds a hang; it measures nothing.
const patience = 30 * time.Second

// ledgerPatience is how long things may take to go away after the last request was answered; clients that say nothing have five seconds of it.
const ledgerPatience = 30 * time.Second

// eventually asks until check has nothing to complain about.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	if err := within(patience, check); err != nil {
		t.Fatalf("waited %s for %s: %v", patience, what, err)
	}
}

// within returns the last complaint of check, or nil as soon as there is none.
func within(deadline time.Duration, check func() error) error {
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

// unless turns a condition into a complaint.
func unless(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// wantEqual compares two messages field by field.
func wantEqual(t testing.TB, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s is\n%v\nwant\n%v", what, got, want)
	}
}
