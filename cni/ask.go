package cni

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/cribox/cribox/internal/guard"
)

// asker asks the plugins of a network whether they can connect pods now (STATUS, since CNI 1.1.0).
// It asks in the background, when somebody looks and the last answer has become old, so that a
// plugin that is slow or hangs holds nobody up. A plugin that gives no answer, or does not know the
// question, is not held against the network.
type asker struct {
	ask func(context.Context, *network) error

	mu       sync.Mutex
	about    string             // the configuration that the rest is of
	words    error              // of the last answer; nil = ready
	mute     error              // why the last question had no answer
	at       time.Time          // of the last answer; zero = there is none yet
	began    time.Time          // of the first question
	answered chan struct{}      // closed with the end of the question under way; nil = there is none
	cancel   context.CancelFunc // ends the question under way
}

const (
	// statusTimeout bounds one question to all plugins of the network.
	statusTimeout = 10 * time.Second
	// readyAge and refusedAge are how long an answer counts before the next look asks again.
	readyAge   = 10 * time.Second
	refusedAge = 2 * time.Second
	// firstPatience is how long whoever looks waits for the first answer of a network, counted from
	// the question.
	firstPatience = 500 * time.Millisecond
)

// hasStatus tells whether the network's plugins know STATUS and GC.
func hasStatus(w *network) bool {
	has, err := version.GreaterThanOrEqualTo(w.version, "1.1.0")
	return has && err == nil
}

// verdict returns what the plugins of w said last, nil when they are ready or have not said
// anything.
func (a *asker) verdict(w *network) error {
	if !hasStatus(w) {
		return nil
	}
	answered := a.start(w)
	if answered != nil {
		a.wait(answered)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.about != string(w.chains[0].Bytes) {
		return nil
	}
	return a.words
}

// start begins a question when one is due. What it returns is closed with the first answer, if
// there is none yet.
func (a *asker) start(w *network) (answered <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if about := string(w.chains[0].Bytes); a.about != about {
		if a.cancel != nil {
			a.cancel()
		}
		a.about, a.words, a.mute, a.at, a.began, a.answered = about, nil, nil, time.Time{}, time.Now(), nil
	}
	age := readyAge
	if a.words != nil {
		age = refusedAge
	}
	if a.answered == nil && time.Since(a.at) > age {
		ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
		a.answered, a.cancel = make(chan struct{}), cancel
		go a.question(ctx, cancel, w, a.answered)
	}
	if !a.at.IsZero() || a.mute != nil {
		return nil
	}
	return a.answered
}

// wait waits for a first answer, but not longer than firstPatience after the question.
func (a *asker) wait(answered <-chan struct{}) {
	a.mu.Lock()
	left := firstPatience - time.Since(a.began)
	a.mu.Unlock()
	if left > 0 {
		within(answered, left)
	}
}

func (a *asker) question(ctx context.Context, cancel context.CancelFunc, w *network, answered chan struct{}) {
	defer cancel()
	err := guard.Call(ctx, "status of a network", func() error { return a.ask(ctx, w) })
	a.mu.Lock()
	defer a.mu.Unlock()
	defer close(answered)
	if a.answered != answered {
		return // the network is another one by now
	}
	a.answered = nil
	before := [2]error{a.words, a.mute}
	a.at = time.Now()
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errdefs.ErrInternal):
		a.mute = err // what was said before still counts
	case unknownQuestion(err):
		a.words, a.mute = nil, err
	default:
		a.words, a.mute = err, nil
	}
	if changed(before[0], a.words) || changed(before[1], a.mute) {
		log.G(ctx).WithField("network", w.name).WithError(errors.Join(a.words, a.mute)).Info("the network plugins changed their status")
	}
}

func changed(before, now error) bool {
	return (before == nil) != (now == nil) || before != nil && before.Error() != now.Error()
}

// unknownQuestion tells whether a plugin does not know the CNI_COMMAND.
func unknownQuestion(err error) bool {
	var said *refusal
	return errors.As(err, &said) && said.code == types.ErrInvalidEnvironmentVariables
}

// last is the last answer, for people.
func (a *asker) last(w *network) string {
	if !hasStatus(w) {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.about != string(w.chains[0].Bytes) || a.at.IsZero():
		return "not answered yet"
	case a.mute != nil:
		return "no answer: " + a.mute.Error()
	case a.words != nil:
		return a.words.Error()
	}
	return "ready"
}

// The codes with which a plugin says that it cannot serve an ADD (CNI 1.1.0).
const (
	codeUnavailable = 50
	codeLimited     = 51
)

// askStatus asks one plugin of w after the other, until one is not ready.
func (n *Networks) askStatus(ctx context.Context, w *network) error {
	list := w.chains[0]
	for _, p := range list.Plugins {
		one := &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion, Plugins: []*libcni.PluginConfig{p}}
		err := n.plugins(Pod{}).GetStatusNetworkList(ctx, one)
		if err == nil {
			continue
		}
		var said *refusal
		if errors.As(err, &said) && (said.code == codeUnavailable || said.code == codeLimited) {
			err = said // its exit code says nothing more
		}
		return fmt.Errorf("plugin %s is not ready: %w", p.Network.Type, err)
	}
	return nil
}
