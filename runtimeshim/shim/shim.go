package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/place"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// shim is the parent of every task of this state folder.
//
// It opens no file outside the state folder, /proc, /sys and /dev/null, waits for children in one
// place only (the reaper), and has no policy. Each part below owns its fields, and uses only the
// parts before it.
type shim struct {
	env
	driver   *oci.Driver
	cgroups  *cgroup.Finder
	table    *table
	holder   *holder
	reporter *reporter
	remover  *remover
	starter  *starter
	updater  *updater
	execs    *execs
	adopter  *adopter
	quit     context.CancelFunc
}

// env has what every part needs.
type env struct {
	state statedir.Root
	step  step.Hook
}

// table has all tasks, and their locks.
type table struct {
	env

	mu       sync.Mutex // also guards the fields of the tasks
	tasks    map[string]*task
	watchers map[*watcher]bool
	quitting bool
}

// task is one entry of the table.
type task struct {
	dir statedir.Task
	// op holds one value while no operation (start, release, delete, ...) has the task locked.
	op     chan struct{}
	exited chan struct{} // closed when exit is set

	// Written by the holder of op, under table.mu.
	rec     statedir.Record
	pidfd   *os.File
	fifos   []*os.File // kept open so that unread output survives the logger
	stdin   *os.File
	giving  *os.File // the stdin that is being sent to its only user
	tty     *os.File
	pump    *pump
	keeper  *keeper // only of a pod task
	deleted bool

	unfiltered   *place.Key // its seccomp profile, whose filter place does not have
	shareKeyring bool       // start without a new session keyring, because the node has no key quota left
	unknown      bool       // something of it cannot be read now; it is taken over when it can
	// keptBy is the pod whose keeper socket has descriptors of this task, while its record is not
	// read.
	keptBy string

	runtimeBegan time.Time // of the process that started the task; held with op
	runtimeTook  time.Duration

	saved *kept // those descriptors; owned by the goroutine that loads the task

	commands atomic.Pointer[commands] // see execution.container

	sessions int // client execs in progress; under table.mu

	exit *statedir.ExitRecord // written once, under table.mu, before exited is closed
}

// Main is the body of `cribox-helper shim --state DIR`. It returns when it receives the verb quit, or
// immediately with nil when another shim serves the folder. It does not return when ctx ends,
// because a signal to all processes must not end the shim (but see leaveWithTheMachine). It may
// execute its own program again, to start with fixed limits and environment.
func Main(ctx context.Context, state string, step step.Hook) error {
	s, err := newShim(state, step)
	if s == nil || err != nil {
		return err
	}
	ctx, s.quit = context.WithCancel(context.WithoutCancel(ctx))
	defer s.quit()
	helper.BoundLog()
	go s.reporter.kills.Run(ctx)
	go s.driver.Reaper.Run(ctx)
	if err := s.adopter.adopt(ctx); err != nil {
		return fmt.Errorf("take over the tasks of the earlier shim: %w", err)
	}
	return wire.Serve(ctx, s.state.ShimSock(), s.handlers())
}

// newShim makes this process the shim of a state folder; nil when another process already is.
func newShim(state string, step step.Hook) (*shim, error) {
	e := env{statedir.Root(state), step}
	all, err := cgroup.NewFinder(e.state)
	if err != nil {
		return nil, err
	}
	if err := fixInheritance(); err != nil {
		return nil, err
	}
	if held, err := helper.HoldLock(e.state.ShimLock(), e.state.ShimHome()); err != nil || held == nil {
		return nil, err
	}
	ownOOM, err := becomeShim()
	if err != nil {
		return nil, err
	}
	kills, err := cgroup.NewCounterWatch(cgroup.ParseOOMKills)
	if err != nil {
		return nil, err
	}
	return assemble(e, all, oci.NewDriver(e.state, ownOOM), kills), nil
}

// assemble creates the parts of a shim.
func assemble(e env, g *cgroup.Finder, d *oci.Driver, kills *cgroup.CounterWatch) *shim {
	filters := newFilters(e)
	tab := &table{env: e, tasks: map[string]*task{}, watchers: map[*watcher]bool{}}
	h := &holder{env: e, table: tab}
	p := &reporter{env: e, table: tab, holder: h, cgroups: g, kills: kills}
	r := &remover{env: e, table: tab, holder: h, reporter: p, driver: d, cgroups: g}
	return &shim{
		env: e, driver: d, cgroups: g, table: tab, holder: h, reporter: p, remover: r,
		starter: &starter{env: e, table: tab, holder: h, reporter: p, remover: r, driver: d, reaper: d.Reaper,
			noPreserveFDs: map[string]bool{},
			filters:       filters, cgroups: g},
		updater: &updater{env: e, table: tab, driver: d, cgroups: g},
		execs:   &execs{env: e, table: tab, driver: d, reaper: d.Reaper, filters: filters},
		adopter: &adopter{env: e, table: tab, holder: h, reporter: p, remover: r, driver: d, cgroups: g},
	}
}

// becomeShim sets the attributes that children inherit, and limits the resources of this process.
// ownOOM: this process has a different oom_score_adj than its children must have.
func becomeShim() (ownOOM bool, err error) {
	if level := os.Getenv(helper.LogLevelEnv); level != "" {
		if err := log.SetLevel(level); err != nil {
			log.L.WithError(err).Warn("cannot set the log level")
		}
	}
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(25)
	debug.SetMemoryLimit(64 << 20)
	unix.Umask(0o022)
	if err := errors.Join(os.Chdir("/"), unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)); err != nil {
		return false, fmt.Errorf("become a subreaper in /: %w", err)
	}
	// Caught and dropped, not ignored, because children would inherit an ignored signal.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	go leaveWithTheMachine(terminate)
	// Needs CAP_SYS_RESOURCE; without it the score stays as it is.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	raw, _ := os.ReadFile("/proc/self/oom_score_adj")
	return strings.TrimSpace(string(raw)) != "0", nil
}

const lastInit = "systemd-shutdow" // truncated to 15 bytes by the kernel

// leaveWithTheMachine ends this process at the SIGTERM that every process receives at shutdown. It
// drops any other SIGTERM.
func leaveWithTheMachine(terminate <-chan os.Signal) {
	for range terminate {
		name, err := os.ReadFile(procfd.InitName)
		if err == nil && strings.TrimSpace(string(name)) == lastInit {
			os.Exit(0)
		}
	}
}

func (s *shim) handlers() map[string]wire.Handler {
	return map[string]wire.Handler{
		"version": func(context.Context, *wire.Inbound) (any, error) {
			return wire.Version{Format: wire.Format, Pid: os.Getpid(), Goroutines: runtime.NumGoroutine()}, nil
		},
		"start": func(ctx context.Context, in *wire.Inbound) (any, error) {
			var p statedir.Params
			if err := in.Decode(&p); err != nil {
				return nil, err
			}
			return s.starter.start(ctx, p)
		},
		"settle":  withID(s.table.awaitStart),
		"release": withID(func(ctx context.Context, id string) (any, error) { return nil, s.remover.release(ctx, id) }),
		"delete":  withID(func(ctx context.Context, id string) (any, error) { return nil, s.remover.delete(ctx, id) }),
		"end":     withID(func(ctx context.Context, id string) (any, error) { return nil, s.remover.endTask(ctx, id) }),
		"tasks":   func(context.Context, *wire.Inbound) (any, error) { return s.table.list() },
		"task":    withID(func(_ context.Context, id string) (any, error) { return s.table.one(id) }),
		"kill":    s.remover.kill,
		"exec":    s.execs.exec,
		"update":  s.updater.update,
		"watch":   s.reporter.watch,
		"fds":     s.holder.fds,
		"quit":    s.quitVerb,
	}
}

func withID(f func(context.Context, string) (any, error)) wire.Handler {
	return func(ctx context.Context, in *wire.Inbound) (any, error) {
		var b wire.Task
		if err := in.Decode(&b); err != nil {
			return nil, err
		}
		if err := statedir.CheckID(b.ID); err != nil {
			return nil, err
		}
		return f(ctx, b.ID)
	}
}

// quitVerb ends the shim if no task is left. ErrFailedPrecondition otherwise.
func (s *shim) quitVerb(context.Context, *wire.Inbound) (any, error) {
	s.table.mu.Lock()
	s.table.quitting = true
	s.table.mu.Unlock()
	left, err := s.table.list()
	if err != nil || len(left) > 0 {
		s.table.mu.Lock()
		s.table.quitting = false
		s.table.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("%d tasks are left, %s is %s: %w", len(left), left[0].ID, left[0].State,
			errdefs.ErrFailedPrecondition)
	}
	time.AfterFunc(50*time.Millisecond, s.quit) // so that the reply is sent first
	return nil, nil
}
