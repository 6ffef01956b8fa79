package program

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/activity"
)

const (
	maxStdout = 1 << 20 // a result has some kilobytes
	maxStderr = 4 << 10 // the end of stderr, for the error

	// pipeGrace is how long a plugin's output may stay open after its exit, because a process that
	// it started still has it.
	pipeGrace = 2 * time.Second
	// killGrace is how long to wait for the end of a killed plugin, which may be in uninterruptible
	// sleep.
	killGrace = 5 * time.Second
	// busyRetries and busyPause: a plugin file that an installer still has open for writing cannot
	// be executed, so that is retried.
	busyRetries = 20
	busyPause   = 100 * time.Millisecond

	callMark = "CRIBOX_CNI_CALL="
	ToolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// fixedEnv is the environment of a plugin besides CNI_*. It has nothing of the daemon's own
// environment, such as proxies or credentials.
var fixedEnv = []string{"PATH=" + ToolPath, "HOME=/root", "LANG=C"}

// cniVars are the variables set by libcni that a plugin gets.
var cniVars = []string{"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_ARGS", "CNI_IFNAME", "CNI_PATH"}

// Executor runs the plugins of one operation; it implements libcni's invoke.Exec.
type Executor struct {
	version.PluginDecoder
	Lock *os.File // every plugin inherits it as descriptor 3; may be nil
}

// FindInPath finds a plugin; the name must not lead out of the folders.
func (*Executor) FindInPath(plugin string, dirs []string) (string, error) {
	return Find(plugin, dirs)
}

// ErrNone marks the error for a plugin that is in none of the folders.
var ErrNone = errors.New("is not")

func Find(plugin string, dirs []string) (string, error) {
	if err := CheckName(plugin); err != nil {
		return "", err
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		st, err := os.Stat(path)
		switch {
		case err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0:
			return path, nil
		case err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return "", fmt.Errorf("plugin %s: %w", plugin, err)
		}
	}
	return "", fmt.Errorf("plugin %s %w in %s", plugin, ErrNone, strings.Join(dirs, ":"))
}

// ExecPlugin runs one plugin until it exits or ctx ends, and returns its output.
func (e *Executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	r := run{path: path, stdin: stdin, env: slices.Clone(fixedEnv)}
	for _, kv := range environ {
		if name, _, ok := strings.Cut(kv, "="); ok && slices.Contains(cniVars, name) {
			r.env = append(r.env, kv)
		}
	}
	if e.Lock != nil {
		r.files = []*os.File{e.Lock}
	}
	var stdout []byte
	err := activity.Do(ctx, r.name(), func(ctx context.Context) (err error) {
		stdout, err = r.do(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if slices.Contains(r.env, "CNI_COMMAND=ADD") {
		if told := toldError(stdout); told != "" {
			return nil, errors.New(told)
		}
	}
	return stdout, nil
}

// RunTool runs a program of the system, such as nft.
func RunTool(ctx context.Context, name, stdin string, args ...string) ([]byte, error) {
	path, err := Find(name, strings.Split(ToolPath, ":"))
	if err != nil {
		return nil, err
	}
	out, err := (&run{path: path, args: args, stdin: []byte(stdin), env: fixedEnv}).do(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

// run is one execution of a program, in a process group of its own, not longer than its context.
type run struct {
	path   string
	args   []string
	stdin  []byte
	env    []string
	files  []*os.File
	mark   string // in the environment of all processes of this run
	stdout capped
	stderr tail
}

// name is what people call the run of a plugin, such as "plugin bridge ADD".
func (r *run) name() string {
	words := []string{"plugin", filepath.Base(r.path)}
	for _, kv := range r.env {
		if command, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			words = append(words, command)
		}
	}
	return strings.Join(words, " ")
}

func (r *run) do(ctx context.Context) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	r.mark = callMark + rand.Text()
	r.stdout.full = make(chan struct{})
	cmd, err := r.start(ctx)
	if err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() { waitExit(cmd.Process.Pid); close(exited) }()

	var killed error
	select {
	case <-exited:
	case <-ctx.Done():
		killed = fmt.Errorf("killed: %w", ctx.Err())
	case <-r.stdout.full:
		killed = fmt.Errorf("killed: it printed more than %d bytes", maxStdout)
	}
	if killed != nil {
		r.killAll(cmd.Process.Pid)
		if !within(exited, killGrace) {
			go func() { _ = cmd.Wait() }() // reaps it whenever the kernel lets it end
			return nil, fmt.Errorf("%w; it did not exit after SIGKILL", killed)
		}
	}
	err = cmd.Wait()
	if killed == nil && r.stdout.isFull() {
		killed = fmt.Errorf("it printed more than %d bytes", maxStdout)
	}
	if killed == nil && err != nil {
		// Kill what a failed program has left running, so that it does not interfere with the
		// clean-up that follows. Find it by its mark, not by its group: the leader is reaped, and
		// the group's number may be reused.
		strays.kill(r.mark)
	}
	if killed == nil {
		killed = r.failure(err)
	}
	return r.stdout.bytes(), killed
}

func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

func (r *run) start(ctx context.Context) (*exec.Cmd, error) {
	for i := 0; ; i++ {
		cmd := &exec.Cmd{
			Path: r.path, Args: append([]string{r.path}, r.args...), Env: append(slices.Clone(r.env), r.mark), Dir: "/",
			Stdin: bytes.NewReader(r.stdin), Stdout: &r.stdout, Stderr: &r.stderr, ExtraFiles: r.files,
			SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, WaitDelay: pipeGrace,
		}
		err := cmd.Start()
		if !errors.Is(err, unix.ETXTBSY) || i == busyRetries {
			return cmd, err
		}
		if within(ctx.Done(), busyPause) {
			return nil, err
		}
	}
}

// waitExit returns when the child has ended, and does not reap it: until it is reaped, the number
// of its process group cannot be reused.
func waitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// killAll kills the group of the unreaped child, and the processes that have left the group.
func (r *run) killAll(pid int) {
	_ = unix.Kill(-pid, unix.SIGKILL)
	strays.kill(r.mark)
}

// failure turns the result of a run into an error that contains the program's own message.
func (r *run) failure(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrWaitDelay):
		return errors.New("a child process that it left behind keeps its output open")
	}
	if told, ok := decodeError(r.stdout.bytes()); ok {
		err = fmt.Errorf("%w: %w", err, &RefusalError{Code: told.Code, text: toldError(r.stdout.bytes())})
		if told.Code == types.ErrTryAgainLater {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		return err
	}
	if said := strings.TrimSpace(strings.ToValidUTF8(r.stderr.String(), "?")); said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// RefusalError is an error that a plugin printed.
type RefusalError struct {
	Code uint
	text string
}

func (r *RefusalError) Error() string { return r.text }

func decodeError(stdout []byte) (types.Error, bool) {
	var e types.Error
	err := json.Unmarshal(stdout, &e)
	return e, err == nil && e.Code != 0
}

// toldError returns the text of an error that a plugin printed; "" when it printed none.
func toldError(stdout []byte) string {
	e, ok := decodeError(stdout)
	if !ok {
		return ""
	}
	text := fmt.Sprintf("%s (code %d)", e.Msg, e.Code)
	if e.Details != "" {
		text += "; " + e.Details
	}
	if len(text) > maxStderr {
		text = text[:maxStderr]
	}
	return strings.ToValidUTF8(text, "?")
}

// capped keeps up to maxStdout bytes and closes full once there are more.
type capped struct {
	mu   sync.Mutex
	buf  []byte
	over bool
	full chan struct{}
}

func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.buf)+len(p) <= maxStdout {
		c.buf = append(c.buf, p...)
	} else if !c.over {
		c.over = true
		close(c.full)
	}
	return len(p), nil
}

func (c *capped) isFull() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

func (c *capped) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf
}

// tail keeps the last maxStderr bytes.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-maxStderr):]...)
	t.buf = slices.Delete(t.buf, 0, max(0, len(t.buf)-maxStderr))
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// pluginName matches valid plugin names. A name becomes a file name in the plugin folders
// (CVE-2021-20206).
var pluginName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

func CheckName(name string) error {
	if !pluginName.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("plugin type %q is not a plain name", name)
	}
	return nil
}
