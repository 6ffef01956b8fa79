package activity

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func all(Subject) bool { return true }

// TestStory tells what a pod did: nested steps, an error, a panic, and what still runs.
func TestStory(t *testing.T) {
	table := New()
	ctx := table.About(t.Context(), Subject{"pod", "1", "default/web"})
	err := Do(ctx, "network", func(ctx context.Context) error {
		return Do(ctx, "plugin bridge", func(context.Context) error { return errors.New("no address") })
	})
	if err == nil || err.Error() != "no address" {
		t.Errorf("the error is %v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = Do(ctx, "mount", func(context.Context) error { panic("x") })
	}()
	_ = Do(ctx, "start", func(context.Context) error {
		got := table.Running()
		if len(got) != 1 || len(got[0].Running) != 1 || got[0].Running[0].Name != "start" {
			t.Errorf("while it runs: %+v", got)
		}
		return nil
	})
	var told []string
	for _, s := range table.Stories(all)[0].Ended {
		told = append(told, strings.TrimSpace(s.Name+" "+s.Err))
	}
	if want := []string{"plugin bridge no address", "network no address", "mount it panicked", "start"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	if len(table.Running()) > 0 {
		t.Error("something runs at the end")
	}
}

// TestSlow: of nested steps the innermost is reported, once; none is whose data moves, and none that
// only waits.
func TestSlow(t *testing.T) {
	table := New()
	table.slow = time.Millisecond
	reported := make(chan string, 10)
	var wrong atomic.Pointer[string]
	table.report = func(_ context.Context, name string, _ time.Duration) {
		if name == "download" || name == "end" {
			wrong.Store(&name)
		}
		reported <- name
	}
	ctx := table.About(t.Context(), Subject{"pod", "1", ""})
	_ = Do(ctx, "network", func(ctx context.Context) error {
		return Do(ctx, "plugin", func(context.Context) error {
			if got := <-reported; got != "plugin" {
				t.Errorf("reported %q", got)
			}
			return nil
		})
	})
	var bytes, looks atomic.Int64
	moving := Moving(ctx, func() int64 { looks.Add(1); return bytes.Add(1) })
	_ = Do(moving, "download", func(context.Context) error {
		for looks.Load() < 10 {
			runtime.Gosched()
		}
		return nil
	})
	_ = Wait(ctx, "end", func(context.Context) error { return nil })
	if name := wrong.Load(); name != nil {
		t.Errorf("reported %q", *name)
	}
}

// TestBounds: a story has the last steps, and the table the last of those that are gone.
func TestBounds(t *testing.T) {
	table := New()
	ctx := table.About(t.Context(), Subject{"pod", "many", ""})
	for i := range keepSteps + 5 {
		Note(ctx, fmt.Sprint(i))
	}
	s := table.Stories(all)[0]
	if len(s.Ended) != keepSteps || s.Dropped != 5 || s.Ended[0].Name != "5" {
		t.Errorf("%d steps, %d dropped, the first is %s", len(s.Ended), s.Dropped, s.Ended[0].Name)
	}
	for i := range keepGone + 5 {
		id := fmt.Sprint("gone", i)
		Note(table.About(t.Context(), Subject{"pod", id, ""}), "step")
		table.Forget("pod", id)
	}
	if got := len(table.Stories(all)); got != keepGone+1 {
		t.Errorf("%d stories, want %d", got, keepGone+1)
	}
}

// TestMemory measures the stories of 250 pods, each with a container.
func TestMemory(t *testing.T) {
	table, before, after := New(), runtime.MemStats{}, runtime.MemStats{}
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 250 {
		for kind, steps := range map[string]int{"pod": 12, "container": 8} {
			ctx := table.About(context.Background(), Subject{kind, fmt.Sprintf("%064d", i), fmt.Sprintf("default/pod-%d", i)})
			for range steps {
				Note(ctx, "step")
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := after.HeapAlloc - before.HeapAlloc
	t.Logf("%d bytes, %d for each pod with its container", used, used/250)
	if used > 1<<20 {
		t.Errorf("the stories of 250 pods take %d bytes", used)
	}
	runtime.KeepAlive(table)
}

// TestDebts: what never failed is no debt, and what is paid is none any more.
func TestDebts(t *testing.T) {
	table := New()
	ctx := table.About(t.Context(), Subject{"pod", "1", "default/web"})
	d := Owe(ctx, "removing")
	if len(table.Debts()) > 0 {
		t.Error("a first try is a debt")
	}
	d.Failed(errors.New("busy"), time.Unix(5, 0))
	got := table.Debts()
	if len(got) != 1 || got[0].Name != "default/web" || got[0].Tries != 1 || got[0].Err != "busy" || !got[0].Next.Equal(time.Unix(5, 0)) {
		t.Errorf("the debts are %+v", got)
	}
	d.Paid()
	if len(table.Debts()) > 0 {
		t.Error("it is paid")
	}
	Owe(context.Background(), "nothing").Paid()
}
