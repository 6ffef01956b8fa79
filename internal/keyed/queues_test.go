package keyed

import (
	"slices"
	"testing"
	"time"
)

// TestQueues checks that functions of a key run in order, and that no key waits for another.
func TestQueues(t *testing.T) {
	var q Queues
	hang := make(chan struct{})
	q.Add("hangs", func() { <-hang })
	order, last := []int{}, make(chan struct{})
	for i := range 100 {
		q.Add("pod", func() { order = append(order, i) })
	}
	q.Add("pod", func() { close(last) })
	<-last
	if len(order) != 100 || !slices.IsSorted(order) {
		t.Errorf("ran in the order %v", order)
	}
	if q.Wait(0) {
		t.Error("waited for a function that had not returned")
	}
	close(hang)
	if !q.Wait(time.Minute) {
		t.Error("all functions have returned, and Wait did not see it")
	}
}
