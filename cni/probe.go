package cni

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/program"
	"github.com/cribox/cribox/internal/guard"
)

// prober asks each plugin once, in the background, which CNI versions it supports, so that an
// unsuitable plugin is reported by Ready and not by the first pod. A plugin that gives no usable
// answer counts as suitable: many runtimes never ask.
type prober struct {
	mu    sync.Mutex
	known map[string][]string // by identity of the file; empty = asked, but no answer (yet)
}

const (
	probeTimeout = 5 * time.Second
	maxProbed    = 100 // identities remembered; plugins are replaced a few times in a daemon's life
)

func newProber() *prober { return &prober{known: map[string][]string{}} }

// start asks the plugins of w that have not been asked yet.
func (p *prober) start(w *network, dirs []string) {
	for _, plugin := range w.needs {
		path, err := program.Find(plugin, dirs)
		if err != nil {
			continue
		}
		if id := identity(path); p.claim(id) {
			go guard.Run(context.Background(), "version of a plugin", func() { p.ask(path, id) })
		}
	}
}

// claim reports whether the caller is the first to ask, and marks the plugin as asked.
func (p *prober) claim(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, asked := p.known[id]; asked || id == "" {
		return false
	}
	if len(p.known) >= maxProbed {
		clear(p.known)
	}
	p.known[id] = nil
	return true
}

func (p *prober) ask(path, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	info, err := invoke.GetVersionInfo(ctx, path, &program.Executor{})
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[id] = info.SupportedVersions()
}

// verdict returns an error that names a plugin of w which does not support the version of its
// configuration.
func (p *prober) verdict(w *network, dirs []string) error {
	want := w.version
	if want == "" {
		want = "0.1.0" // by CNI, for a configuration without a version
	}
	for _, plugin := range w.needs {
		path, err := program.Find(plugin, dirs)
		if err != nil {
			continue
		}
		p.mu.Lock()
		speaks := p.known[identity(path)]
		p.mu.Unlock()
		if len(speaks) > 0 && !slices.Contains(speaks, want) {
			return fmt.Errorf("plugin %s does not support CNI %s, only %s", plugin, want, strings.Join(speaks, " "))
		}
	}
	return nil
}

// identity returns a string that changes with the file's content, as far as inode and times show
// that.
func identity(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return fmt.Sprintf("%s %d %d %d %d", path, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
}
