package place

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/systemd"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Start describes a process to start.
type Start struct {
	ID           string
	Spec         *specs.Spec // Unable has said nothing about it
	Filter       *Filter     // of its seccomp profile; nil if it has none
	Stdio        [3]*os.File
	Keeper, Lock *os.File // Keeper becomes descriptor 3; Lock is held until the program runs
	PidFile      string   // gets the pid of the process in decimal digits
	Mark         []string // arguments by which the program is recognised in /proc
}

// Job is an execution of the program: Argv[0] with Files as its descriptors. Whoever has executed
// it asks for Failure when the exit status is not 0, and calls Close.
type Job struct {
	Argv  []string
	Files []*os.File
	// Scope: the program waits until it has been put into this scope, and Admit was called. nil: it
	// joins its cgroups itself.
	Scope *systemd.Scope

	own       []*os.File
	program   *os.File
	state     *os.File
	out       *os.File
	admission *os.File // for writing: the program may go on
	spec      *specs.Spec
}

// Prepare makes the cgroups of a process and returns the job that starts it. After an error the
// cgroups may exist.
func Prepare(t Start) (job *Job, err error) {
	if (t.Spec.Linux.Seccomp != nil) != (t.Filter != nil) || t.Filter != nil && !t.Filter.Valid() {
		return nil, errors.New("it needs another seccomp filter")
	}
	plan, err := newPlan(t.ID, t.Spec, t.Filter)
	if err != nil {
		return nil, err
	}
	j := &Job{spec: t.Spec}
	defer func() {
		if err != nil {
			j.Close()
		}
	}()
	if err := begin(j, t.Mark); err != nil {
		return nil, err
	}
	j.Files = []*os.File{t.Stdio[0], t.Stdio[1], t.Stdio[2], t.Keeper, nil, j.state, t.Lock}
	pidFile, err := os.OpenFile(t.PidFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	plan.PidFile = j.give(pidFile)
	for _, n := range t.Spec.Linux.Namespaces {
		if n.Path == "" {
			continue
		}
		f, err := openNamespace(n)
		if err != nil {
			return nil, err
		}
		fd := j.give(f)
		if n.Type == specs.UserNamespace {
			plan.UserNS = fd
		} else {
			plan.NetNS = fd
		}
	}
	if err := j.cgroups(plan); err != nil {
		return nil, err
	}
	return j, j.seal(plan)
}

// cgroups makes the cgroups of the process, or has it wait for its scope.
func (j *Job) cgroups(plan *plan) error {
	join, scope, err := makeCgroups(j.spec)
	if err != nil {
		return err
	}
	for i, f := range join {
		fd := j.give(f)
		if i == len(plan.Cgroup) {
			return fmt.Errorf("%d cgroups", len(join))
		}
		plan.Cgroup[i] = fd
	}
	plan.Cgroups, j.Scope = int32(len(join)), scope
	if scope == nil {
		return nil
	}
	var ends [2]int // the program waits in read, so not a pipe of package os
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	j.admission = os.NewFile(uintptr(ends[1]), "admission")
	j.own = append(j.own, j.admission)
	plan.Scope = j.give(os.NewFile(uintptr(ends[0]), "admission"))
	return nil
}

// Take returns a job that reads the oldest seccomp filter of a process, which it stops for a moment.
// Afterwards Found has the filter.
func Take(pid int, lock *os.File, mark []string) (job *Job, err error) {
	j := &Job{}
	defer func() {
		if err != nil {
			j.Close()
		}
	}()
	if err := begin(j, mark); err != nil {
		return nil, err
	}
	if j.out, err = memory("cribox-filter", nil, false); err != nil {
		return nil, err
	}
	j.Files = []*os.File{nil, nil, nil, nil, nil, j.state, lock}
	plan := &plan{Size: uint32(unsafe.Sizeof(plan{})), Mode: modeTake, Take: int32(pid)}
	plan.Out = j.give(j.out)
	return j, j.seal(plan)
}

// begin opens the program and the memory for its state. The program is a sealed file: nobody who
// reaches it through /proc/PID/exe can change it.
func begin(j *Job, mark []string) error {
	f, err := memory("cribox-place", []byte(program), true)
	if err != nil {
		return err
	}
	j.program = f
	j.own = append(j.own, f)
	if j.state, err = memory("cribox-place-state", nil, false); err != nil {
		return err
	}
	j.own = append(j.own, j.state)
	if err := j.state.Truncate(pidAt + 4); err != nil {
		return err
	}
	j.Argv = append([]string{""}, mark...)
	return nil
}

// give adds a file that belongs to the job, and returns its number in the child.
func (j *Job) give(f *os.File) int32 {
	j.own = append(j.own, f)
	j.Files = append(j.Files, f)
	return int32(len(j.Files) - 1)
}

// seal puts the finished plan into the job.
func (j *Job) seal(p *plan) error {
	f, err := memory("cribox-place-plan", p.bytes(), true)
	if err != nil {
		return err
	}
	j.own = append(j.own, f)
	j.Files[4] = f
	// As a descriptor of the child it has a number there that nothing else takes.
	j.Files = append(j.Files, j.program)
	j.Argv[0] = fmt.Sprintf("/proc/self/fd/%d", len(j.Files)-1)
	return nil
}

// Failure returns at which step the program failed, and why.
func (j *Job) Failure() error { return failure(j.state, j.spec) }

// Found returns the code of the filter that a job of Take has read.
func (j *Job) Found() ([]uint64, error) {
	st, err := j.out.Stat()
	if err != nil {
		return nil, err
	}
	n := st.Size() / 8
	if n == 0 || n > maxInstructions || st.Size()%8 != 0 {
		return nil, fmt.Errorf("a seccomp filter of %d bytes", st.Size())
	}
	filter := make([]uint64, n)
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), n*8)
	_, err = j.out.ReadAt(raw, 0)
	return filter, err
}

// Close closes what belongs to the job.
func (j *Job) Close() {
	unixfd.CloseAll(j.own)
	j.own = nil
}

// openNamespace opens a namespace to join. An error if it is this process's own: the spec asks for
// another.
func openNamespace(n specs.LinuxNamespace) (*os.File, error) {
	own := "/proc/self/ns/net"
	if n.Type == specs.UserNamespace {
		own = "/proc/self/ns/user"
	}
	f, err := os.Open(n.Path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	mine, ownErr := os.Stat(own)
	if err = errors.Join(err, ownErr); err == nil && os.SameFile(st, mine) {
		err = fmt.Errorf("%s is the host's namespace", n.Path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// memory returns a file in memory with this content; sealed, it can never be changed, and is
// opened for reading only.
func memory(name string, content []byte, sealed bool) (*os.File, error) {
	// A child that inherits the writable descriptor, if only until it executes something, would
	// make a program busy.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // Linux before 6.3, where every such file can be executed
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil || !sealed {
		return closedIf(f, err)
	}
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, all); err != nil {
		return closedIf(f, err)
	}
	defer f.Close()
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// closedIf returns the file, or closes it if there is an error.
func closedIf(f *os.File, err error) (*os.File, error) {
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("file in memory: %w", err)
	}
	return f, nil
}
