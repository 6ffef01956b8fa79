package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// shim is the parent of every task of this state folder.
//
// It opens no file outside the state folder, /proc, /sys and /dev/null, waits
// for children in one place only (reaper), and has no policy. Each part below
// owns its fields, and uses only the parts before it.
type shim struct {
	env
	driver   *driver
	cgroups  *cgroups
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

// env is what every part needs to know.
type env struct {
	state stateDir
	step  func(string)
}

// table knows all tasks, and which of them somebody works on.
type table struct {
	env

	mu       sync.Mutex // guards the fields of its tasks too
	tasks    map[string]*task
	watchers map[*watcher]bool
	quitting bool
}

// task is one entry of the table.
type task struct {
	dir    taskDir
	op     chan struct{} // holds one value while nobody starts, releases or deletes the task
	exited chan struct{} // closed when exit is set

	// Written by the holder of op, under table.mu.
	rec     taskRecord
	pidfd   *os.File
	fifos   []*os.File // kept open so that unread output survives the logger
	stdin   *os.File
	giving  *os.File // the stdin that is being sent to its only user
	tty     *os.File
	pump    *pump
	keeper  *keeper // of a pod task
	deleted bool

	shareKeyring bool   // the node has no keyring left for it
	unknown      bool   // something of it cannot be read now; it is taken over when it can
	keptBy       string // the pod whose keeper has something of it, while its record is not read
	saved        *kept  // that; of who loads it

	sessions int // execs of clients that are under way; under table.mu

	exit *exitRecord // written once, under table.mu, before exited is closed
}

// ShimMain is the body of `cribox shim --state DIR`. It returns when it was
// told to quit, or at once with nil when another shim serves the folder; the
// end of ctx does not end it, because a signal to everybody must not either
// (but see leaveWithTheMachine). It may execute its own program again, to start
// from known limits and environment.
func ShimMain(ctx context.Context, state string, step func(string)) error {
	s, err := newShim(state, step)
	if s == nil || err != nil {
		return err
	}
	ctx, s.quit = context.WithCancel(context.WithoutCancel(ctx))
	defer s.quit()
	boundLog()
	go s.reporter.kills.run(ctx)
	go s.driver.reaper.run(ctx)
	if err := s.adopter.adopt(ctx); err != nil {
		return fmt.Errorf("take over the tasks of the shim before: %w", err)
	}
	return serveAt(ctx, s.state.shimSock(), s.handlers())
}

// newShim makes this process a shim; nil when there is one already.
func newShim(state string, step func(string)) (*shim, error) {
	if step == nil {
		step = func(string) {}
	}
	all, err := newCgroups(env{stateDir(state), step})
	if err != nil {
		return nil, err
	}
	if err := fixLimits(); err != nil {
		return nil, err
	}
	if held, err := holdLock(all.state.shimLock(), all.state.shimHome()); err != nil || held == nil {
		return nil, err
	}
	ownOOM, err := settleIn()
	if err != nil {
		return nil, err
	}
	kills, err := newCounterWatch(parseOOMKills)
	if err != nil {
		return nil, err
	}
	return assemble(all, &driver{env: all.env, reaper: newReaper(), ownOOM: ownOOM}, kills), nil
}

// assemble makes the parts of a shim.
func assemble(g *cgroups, d *driver, kills *counterWatch) *shim {
	tab := &table{env: g.env, tasks: map[string]*task{}, watchers: map[*watcher]bool{}}
	h := &holder{env: g.env, table: tab}
	p := &reporter{env: g.env, table: tab, holder: h, cgroups: g, kills: kills}
	r := &remover{env: g.env, table: tab, holder: h, reporter: p, driver: d, cgroups: g}
	return &shim{
		env: g.env, driver: d, cgroups: g, table: tab, holder: h, reporter: p, remover: r,
		starter: &starter{env: g.env, table: tab, holder: h, reporter: p, remover: r, driver: d, noPreserveFDs: map[string]bool{}},
		updater: &updater{env: g.env, table: tab, driver: d, cgroups: g},
		execs:   &execs{env: g.env, table: tab, driver: d},
		adopter: &adopter{env: g.env, table: tab, holder: h, reporter: p, remover: r, driver: d, cgroups: g},
	}
}

// settleIn fixes what the process passes on to its children and what it costs.
// ownOOM: the process has another oom_score_adj than its children shall have.
func settleIn() (ownOOM bool, err error) {
	if level := os.Getenv(logLevelEnv); level != "" {
		if err := log.SetLevel(level); err != nil {
			log.L.WithError(err).Warn("log level is not set")
		}
	}
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(25)
	debug.SetMemoryLimit(64 << 20)
	unix.Umask(0o022)
	if err := errors.Join(os.Chdir("/"), unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)); err != nil {
		return false, fmt.Errorf("become a subreaper in /: %w", err)
	}
	// Caught and dropped, because an ignored signal would stay ignored in children.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	go leaveWithTheMachine(terminate)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0) // needs CAP_SYS_RESOURCE; without it we stay as killable as we are
	raw, _ := os.ReadFile("/proc/self/oom_score_adj")
	return strings.TrimSpace(string(raw)) != "0", nil
}

// initName is what the first process calls itself. The program that systemd becomes at the very end, when all units have ended, sends SIGTERM
// to everybody and waits for up to 90 seconds until nobody is left.
var initName = "/proc/1/comm"

const lastInit = "systemd-shutdow" // cut to 15 bytes by the kernel

// leaveWithTheMachine ends this process at the SIGTERM that everybody gets when the machine is turned off. Any other is dropped.
func leaveWithTheMachine(terminate <-chan os.Signal) {
	for range terminate {
		name, err := os.ReadFile(initName)
		if err == nil && strings.TrimSpace(string(name)) == lastInit {
			os.Exit(0)
		}
	}
}

// resetOOMScore undoes in a child what settleIn did to us.
func (d *driver) resetOOMScore(c child) {
	if !d.ownOOM || c.pidfd == nil {
		return
	}
	proc, err := os.OpenRoot(fmt.Sprintf("/proc/%d", c.pid)) // of one process: the number may be given away, this not
	if err != nil {
		return
	}
	defer proc.Close()
	if stillHas(c.pidfd, c.pid) == nil {
		_ = proc.WriteFile("oom_score_adj", []byte("0"), 0)
	}
}

// logLevelEnv sets the log level of shim and logger.
const logLevelEnv = "CRIBOX_LOG_LEVEL"

// limitsEnv marks a process that started with the limits it shall pass on.
const limitsEnv = "CRIBOX_SHIM_LIMITS"

// fixLimits executes the program again with fixed resource limits and
// environment. Go raises its own soft limit of open files when it starts and
// gives children the original, so only an exec sets what children get.
func fixLimits() error {
	if os.Getenv(limitsEnv) != "" {
		return nil
	}
	for what, soft := range map[int]uint64{unix.RLIMIT_NOFILE: 1024, unix.RLIMIT_NPROC: unix.RLIM_INFINITY, unix.RLIMIT_CORE: unix.RLIM_INFINITY} {
		var l syscall.Rlimit
		if err := syscall.Getrlimit(what, &l); err != nil {
			return fmt.Errorf("read resource limit %d: %w", what, err)
		}
		l.Cur = min(soft, l.Max)
		if err := syscall.Setrlimit(what, &l); err != nil {
			return fmt.Errorf("set resource limit %d: %w", what, err)
		}
	}
	exe, err := os.Executable()
	if err != nil || strings.HasSuffix(exe, " (deleted)") {
		exe = "/proc/self/exe"
	}
	return fmt.Errorf("execute the shim again: %w", syscall.Exec(exe, os.Args, append(processEnv(), limitsEnv+"=1")))
}

// processEnv is the environment of shim and logger: fixed, and the switches of tests.
func processEnv() []string {
	env := append([]string{}, runtimeEnv...)
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "CRIBOX_STEP") || strings.HasPrefix(kv, "CRIBOX_TEST") ||
			strings.HasPrefix(kv, logLevelEnv+"=") {
			env = append(env, kv)
		}
	}
	return env
}

// holdLock locks file and folder until release is called or the process ends,
// and writes the pid into the file. No release when another process holds one.
func holdLock(file, folder string) (release func(), err error) {
	dir, err := unix.Open(folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open lock %s: %w", folder, err)
	}
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open lock %s: %w", file, err), unix.Close(dir))
	}
	for _, one := range []int{dir, fd} {
		if held, err := flockSoon(one); err != nil || !held {
			return nil, errors.Join(err, unix.Close(dir), unix.Close(fd))
		}
	}
	if err := unix.Ftruncate(fd, 0); err == nil {
		_, _ = unix.Pwrite(fd, []byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for people only
	}
	return func() { closeFD(&fd); closeFD(&dir) }, nil
}

// flockSoon locks fd. A caller that only looks whether the lock is free takes
// it for an instant, so it is tried for a while.
func flockSoon(fd int) (bool, error) {
	for range 20 {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return false, fmt.Errorf("take lock: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false, nil
}

// versionReply answers the verb version, of shim and logger alike.
type versionReply struct {
	Format int    `json:"format"`
	Pid    int    `json:"pid"`
	Build  string `json:"build,omitempty"` // of the program; shims, and loggers of old versions, do not say
}

type idBody struct {
	ID string `json:"id"`
}

type killBody struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

func (s *shim) handlers() map[string]handler {
	return map[string]handler{
		"version": func(context.Context, *inbound) (any, error) {
			return versionReply{Format: wireFormat, Pid: os.Getpid()}, nil
		},
		"start": func(ctx context.Context, in *inbound) (any, error) {
			var p taskParams
			if err := in.decode(&p); err != nil {
				return nil, err
			}
			return s.starter.start(ctx, p)
		},
		"settle":  withID(s.table.settle),
		"release": withID(func(ctx context.Context, id string) (any, error) { return nil, s.remover.release(ctx, id) }),
		"delete":  withID(func(ctx context.Context, id string) (any, error) { return nil, s.remover.delete(ctx, id) }),
		"end":     withID(func(ctx context.Context, id string) (any, error) { return nil, s.remover.endTask(ctx, id) }),
		"tasks":   func(context.Context, *inbound) (any, error) { return s.table.list() },
		"kill":    s.remover.kill,
		"exec":    s.execs.exec,
		"update":  s.updater.update,
		"watch":   s.reporter.watch,
		"fds":     s.holder.fds,
		"quit":    s.quitVerb,
	}
}

func withID(f func(context.Context, string) (any, error)) handler {
	return func(ctx context.Context, in *inbound) (any, error) {
		var b idBody
		if err := in.decode(&b); err != nil {
			return nil, err
		}
		if err := checkID(b.ID); err != nil {
			return nil, err
		}
		return f(ctx, b.ID)
	}
}

// quitVerb ends the shim when no task folder is left.
func (s *shim) quitVerb(context.Context, *inbound) (any, error) {
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
		return nil, fmt.Errorf("%d tasks are left, %s is %s: %w", len(left), left[0].ID, left[0].State, errdefs.ErrFailedPrecondition)
	}
	time.AfterFunc(50*time.Millisecond, s.quit) // the reply goes first
	return nil, nil
}
