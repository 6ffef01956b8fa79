package cni

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
)

// statusHost is a host with one network of CNI 1.1.0, whose plugin runs status on STATUS.
func statusHost(t *testing.T, status string) (*host, *fake) {
	h := newHost(t)
	f := h.fake("fakenet", "", "")
	f.status(status)
	h.conf("10-x.conflist", strings.Replace(list("x", "fakenet"), `"1.0.0"`, `"1.1.0"`, 1))
	return h, f
}

// status makes the plugin one of CNI 1.1.0 that runs does on STATUS.
func (f *fake) status(does string) { f.does(map[string]string{"STATUS": does}) }

// does makes the plugin one of CNI 1.1.0 that runs these scripts for these commands, and behaves
// normally for others.
func (f *fake) does(verbs map[string]string) {
	f.t.Helper()
	all := map[string]string{"ADD": fakeLease + fakeResult, "DEL": fakeRelease}
	maps.Copy(all, verbs)
	cases := ""
	for verb, does := range all {
		cases += fmt.Sprintf("%s) %s ;;\n", verb, does)
	}
	script := fmt.Sprintf(`#!/bin/sh
D=%s
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'; exit 0 ;;
esac
cat > $D/stdin.$CNI_COMMAND
env > $D/env.$CNI_COMMAND
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS" >> $D/calls
case $CNI_COMMAND in
%sesac
`, f.dir, cases)
	writeTestFile(f.t, f.path+".new", script, 0o755)
	if err := unix.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

// cniError returns a script that prints a CNI error and fails.
func cniError(code int, msg, details string) string {
	return fmt.Sprintf(`echo '{"cniVersion":"1.1.0","code":%d,"msg":"%s","details":"%s"}'; exit 1`, code, msg, details)
}

// settled polls Ready until ok accepts its error, because the answers come in the background.
func (h *host) settled(ok func(error) bool) error {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := h.n.Ready()
		if ok(err) {
			return err
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("ready says %v", err)
		}
	}
}

// TestStatusIsTheReason: a plugin's STATUS error becomes the reason in Ready and in Setup's error.
// The plugin is asked again later.
func TestStatusIsTheReason(t *testing.T) {
	for _, code := range []int{50, 51, 7, 999} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			h, f := statusHost(t, cniError(code, "the agent is away", "no socket"))
			err := h.settled(func(err error) bool { return err != nil })
			wantErr(t, err, errdefs.ErrUnavailable, "network x", "plugin fakenet is not ready", "the agent is away", "no socket", fmt.Sprint("code ", code))
			if strings.Contains(err.Error(), "exit status") != (code != codeUnavailable && code != codeLimited) {
				t.Errorf("the exit status says something for other codes only: %v", err)
			}
			if s := h.n.Status(t.Context()); !strings.Contains(s.PluginStatus, "the agent is away") || !strings.Contains(s.Error, "the agent is away") {
				t.Errorf("status %+v", s)
			}
			if env := f.read("env.STATUS"); !strings.Contains(env, "CNI_PATH="+h.c.BinDirs[0]) {
				t.Errorf("the plugin was asked with %s", env)
			}
			if in := f.read("stdin.STATUS"); !strings.Contains(in, `"name":"x"`) || !strings.Contains(in, `"cniVersion":"1.1.0"`) {
				t.Errorf("the plugin was asked %s", in)
			}
			f.status("true")
			h.settled(func(err error) bool { return err == nil })
			if s := h.n.Status(t.Context()); s.PluginStatus != "ready" || s.Error != "" {
				t.Errorf("status %+v", s)
			}
			h.setup(h.pod("p1"))
		})
	}
}

// TestStatusOfTheChain: the second plugin of a chain is asked, too.
func TestStatusOfTheChain(t *testing.T) {
	h, _ := statusHost(t, "true")
	h.fake("other", "", "").status(cniError(50, "no route server", ""))
	h.conf("10-x.conflist", strings.Replace(list("x", "fakenet", "other"), `"1.0.0"`, `"1.1.0"`, 1))
	wantErr(t, h.settled(func(err error) bool { return err != nil }), errdefs.ErrUnavailable, "plugin other is not ready", "no route server")
}

// TestStatusUnknown: a plugin that does not know STATUS, or has an older configuration, counts as
// ready.
func TestStatusUnknown(t *testing.T) {
	h, f := statusHost(t, cniError(50, "not yet", ""))
	h.settled(func(err error) bool { return err != nil })
	f.status(cniError(4, "unknown CNI_COMMAND: STATUS", "")) // an older plugin replaces it
	h.settled(func(err error) bool { return err == nil })
	h.settled(func(error) bool { return strings.HasPrefix(h.n.asker.last(mustNetwork(h)), "no answer: ") })
	h.setup(h.pod("p1"))
	before := f.calls("STATUS")
	f.status(cniError(50, "must not be asked", ""))
	h.conf("10-x.conflist", list("x", "fakenet"))
	if err := h.n.Ready(); err != nil || f.calls("STATUS") != before {
		t.Errorf("asked although the configuration is of CNI 1.0.0: %v", err)
	}
	if s := h.n.Status(t.Context()); s.PluginStatus != "" {
		t.Errorf("status %+v", s)
	}
}

func mustNetwork(h *host) *network {
	h.t.Helper()
	w, err := h.n.current(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return w
}

// TestStatusHangs: a plugin that hangs in STATUS delays nobody, and runs only once at a time.
func TestStatusHangs(t *testing.T) {
	h := newHost(t)
	f := h.fake("fakenet", "", "")
	fifo := filepath.Join(f.dir, "hang")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f.status("cat " + fifo)
	h.conf("10-x.conflist", strings.Replace(list("x", "fakenet"), `"1.0.0"`, `"1.1.0"`, 1))
	for range 50 {
		if err := h.n.Ready(); err != nil {
			t.Fatal(err)
		}
	}
	h.setup(h.pod("p1"))
	if n := f.calls("STATUS"); n > 1 {
		t.Errorf("asked %d times at once", n)
	}
	if s := h.n.Status(t.Context()); s.PluginStatus != "no answer yet" || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	// The network is replaced by another: the request to the old plugin is cancelled, and the new
	// one is asked.
	h.fake("other", "", "").status(cniError(50, "not yet", ""))
	h.conf("05-y.conflist", strings.Replace(list("y", "other"), `"1.0.0"`, `"1.1.0"`, 1))
	wantErr(t, h.settled(func(err error) bool { return err != nil }), errdefs.ErrUnavailable, "network y", "not yet")
}

// statusNetwork is a network of CNI 1.1.0 for requests that reach no plugin.
func statusNetwork(name string) *network {
	return &network{name: name, version: "1.1.0", chains: [4]*libcni.NetworkConfigList{{Bytes: []byte(name)}}}
}

// TestStatusOfAnotherNetwork: a request has a deadline and is cancelled when the network changes. A
// late answer does not affect the new network.
func TestStatusOfAnotherNetwork(t *testing.T) {
	ended, late := make(chan error, 1), make(chan struct{})
	a := &asker{ask: func(ctx context.Context, w *network) error {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > statusTimeout {
			t.Errorf("the question about %s may last until %s", w.name, deadline)
		}
		if w.name == "next" {
			return nil
		}
		<-ctx.Done()
		ended <- ctx.Err()
		<-late
		return errors.New("said of the network before")
	}}
	next := statusNetwork("next")
	first := a.start(statusNetwork("before"))
	if second := a.start(next); !endsSoon(second) {
		t.Fatal("no answer about the next network")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the question about the network before ended with %v", err)
	}
	close(late)
	if !endsSoon(first) {
		t.Fatal("the question about the network before does not end")
	}
	if err := a.verdict(next); err != nil || a.last(next) != "ready" {
		t.Errorf("the next network is %q, %v", a.last(next), err)
	}
}

// TestStatusWithoutAnswer: a request without an answer does not change the last answer.
func TestStatusWithoutAnswer(t *testing.T) {
	hangs := fmt.Errorf("plugin: %w", context.DeadlineExceeded)
	answers := make(chan error, 1)
	a, w := &asker{ask: func(context.Context, *network) error { return <-answers }}, statusNetwork("x")
	for i, row := range []struct {
		answer     error
		words, say string
	}{
		{hangs, "<nil>", "no answer: plugin: context deadline exceeded"},
		{errors.New("not yet"), "not yet", "not yet"},
		{hangs, "not yet", "no answer: plugin: context deadline exceeded"},
		{nil, "<nil>", "ready"},
	} {
		a.mu.Lock()
		a.at, a.mute = time.Time{}, nil // make the last answer old
		a.mu.Unlock()
		answered := a.start(w)
		answers <- row.answer
		if !endsSoon(answered) {
			t.Fatalf("answer %d does not come", i)
		}
		if a.mu.Lock(); fmt.Sprint(a.words) != row.words {
			t.Errorf("after answer %d the plugins say %v, want %s", i, a.words, row.words)
		}
		a.mu.Unlock()
		if say := a.last(w); say != row.say {
			t.Errorf("after answer %d the status is %q, want %q", i, say, row.say)
		}
	}
}

func endsSoon(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-time.After(time.Minute):
		return false
	}
}
