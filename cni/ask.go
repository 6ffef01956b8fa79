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

	"github.com/cribox/cribox/cni/program"
	"github.com/cribox/cribox/internal/guard"
)

// asker asks the plugins of a network whether they can connect pods now (STATUS, since CNI 1.1.0).
// It asks in the background, when a caller wants the status and the last answer is old, so a plugin
// that is slow or hangs delays nobody. A network counts as ready if a plugin does not answer or
// does not know STATUS.
type asker struct {
	ask func(context.Context, *network) error

	mu       sync.Mutex
	about    string             // the configuration that the other fields are about
	words    error              // the last answer; nil = ready
	mute     error              // why the last request had no answer
	at       time.Time          // time of the last answer; zero = none yet
	began    time.Time          // time of the first request
	answered chan struct{}      // closed at the end of the request in progress; nil = none
	cancel   context.CancelFunc // cancels the request in progress
}

const (
	// statusTimeout limits one request to all plugins of the network.
	statusTimeout = 10 * time.Second
	// readyAge and refusedAge are how long an answer is used before the next caller starts a
	// request.
	readyAge   = 10 * time.Second
	refusedAge = 2 * time.Second
	// firstPatience is how long a caller waits for the first answer of a network, counted from the
	// start of the request.
	firstPatience = 500 * time.Millisecond
)

// hasStatus reports whether the network's CNI version has STATUS and GC.
func hasStatus(w *network) bool {
	has, err := version.GreaterThanOrEqualTo(w.version, "1.1.0")
	return has && err == nil
}

// verdict returns the last answer of the plugins of w; nil when they are ready or have not
// answered.
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

// start begins a request if one is due. If there is no answer yet, it returns a channel that is
// closed with the first one, otherwise nil.
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

// wait waits for the first answer, but not longer than firstPatience after the request.
func (a *asker) wait(answered <-chan struct{}) {
	a.mu.Lock()
	left := firstPatience - time.Since(a.began)
	a.mu.Unlock()
	if left > 0 {
		select {
		case <-answered:
		case <-time.After(left):
		}
	}
}

func (a *asker) question(ctx context.Context, cancel context.CancelFunc, w *network, answered chan struct{}) {
	defer cancel()
	err := guard.Call(ctx, "status of a network", func() error { return a.ask(ctx, w) })
	a.mu.Lock()
	defer a.mu.Unlock()
	defer close(answered)
	if a.answered != answered {
		return // the network has changed meanwhile
	}
	a.answered = nil
	before := [2]error{a.words, a.mute}
	a.at = time.Now()
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errdefs.ErrInternal):
		a.mute = err // the last answer still counts
	case unknownQuestion(err):
		a.words, a.mute = nil, err
	default:
		a.words, a.mute = err, nil
	}
	if changed(before[0], a.words) || changed(before[1], a.mute) {
		log.G(ctx).WithField("network", w.name).WithError(errors.Join(a.words, a.mute)).
			Info("the network plugins changed their status")
	}
}

func changed(before, now error) bool {
	return (before == nil) != (now == nil) || before != nil && before.Error() != now.Error()
}

// unknownQuestion reports whether err means that a plugin does not know the CNI_COMMAND.
func unknownQuestion(err error) bool {
	var said *program.RefusalError
	return errors.As(err, &said) && said.Code == types.ErrInvalidEnvironmentVariables
}

// last returns the last answer as text for people.
func (a *asker) last(w *network) string {
	if !hasStatus(w) {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.about != string(w.chains[0].Bytes) || a.at.IsZero():
		return "no answer yet"
	case a.mute != nil:
		return "no answer: " + a.mute.Error()
	case a.words != nil:
		return a.words.Error()
	}
	return "ready"
}

// The codes with which a plugin reports that it cannot serve an ADD (CNI 1.1.0).
const (
	codeUnavailable = 50
	codeLimited     = 51
)

// askStatus asks the plugins of w one after the other, until one is not ready.
func (n *Networks) askStatus(ctx context.Context, w *network) error {
	list := w.chains[0]
	for _, p := range list.Plugins {
		one := &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion, Plugins: []*libcni.PluginConfig{p}}
		err := n.plugins(Pod{}).GetStatusNetworkList(ctx, one)
		if err == nil {
			continue
		}
		var said *program.RefusalError
		if errors.As(err, &said) && (said.Code == codeUnavailable || said.Code == codeLimited) {
			err = said // its exit code adds nothing
		}
		return fmt.Errorf("plugin %s is not ready: %w", p.Network.Type, err)
	}
	return nil
}
