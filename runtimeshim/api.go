package runtimeshim

import (
	"os"
	"time"
)

// Start describes a task to start. Its strings are trusted: the caller has validated them.
type Start struct {
	ID string // container or pod id, [a-z0-9-]{1,64}
	// Pod is the id of the pod task whose keeper socket holds this task's descriptors; "" for a pod
	// task itself.
	Pod     string
	Runtime string // absolute path of an OCI runtime with a command line
	Spec    []byte // config.json
	// SpecFile is a file that holds Spec, or a newer version of it. It is never written in place,
	// only replaced, so it is hard-linked instead of copied when it is on the same file system.
	// "" = there is no such file.
	SpecFile string

	Terminal bool // must agree with process.terminal of Spec
	Stdin    bool // keep stdin open for Streams; otherwise it is /dev/null
	// StdinOnce: the first caller of Streams that gets stdin owns it alone, and ends the input by
	// closing it.
	StdinOnce bool

	// OwnerUID and OwnerGID own the task's FIFOs and its stdin pipe. They must be root of the user
	// namespace in Spec; otherwise its processes cannot open /dev/stdout again.
	OwnerUID, OwnerGID int

	LogPath string // absolute path of the CRI log; "" = output is read and discarded
	// LogLimit is the maximum size of the log in bytes between rotations, at least MinLogLimit; 0
	// means unlimited.
	LogLimit int64
	// OOMFile is <memory cgroup>/memory.oom_control (v1) or <cgroup>/memory.events (v2). If it is
	// "", OOMKilled is never set.
	OOMFile string
	// LockFile is in the state folder. Every runtime process of the task locks it shared. If it is
	// "", the shim uses a file of its own.
	LockFile string
	// SystemdCgroup: cgroupsPath in Spec has the form SLICE:PREFIX:NAME, and systemd creates the
	// cgroup (CgroupOf returns its path).
	SystemdCgroup bool
	// Keeper marks a pod task: descriptor 3 of its process is the socket that keeps the descriptors
	// of the pod's containers open.
	Keeper bool
	// Native: start the process without the runtime where package place can do exactly what Runtime
	// would do, which must be runc.
	Native bool
	// NativeExec: commands will be executed in it with Native.
	NativeExec bool
}

// Helper is the shim or the logger, as a process.
type Helper struct {
	Name       string // shim or logger
	Pid        int
	Goroutines int // 0 when it is of an earlier version, which does not say
}

// MinLogLimit is the smallest LogLimit allowed, in bytes: a few lines of the maximum length.
const MinLogLimit = 64 << 10

// Exit is how a task ended.
type Exit struct {
	Code  int32 // 0..255; 128+n after signal n; 255 if unknown
	Known bool  // false: nobody could observe how the task ended
	// OOMKilled: the kernel OOM-killed a process in the task's cgroup. Kills before a SIGKILL of
	// ours do not count. The caller decides whether that ended the first process.
	OOMKilled bool
	At        time.Time // when the shim saw the exit
}

// Task is the state of one task, as the shim knows it.
type Task struct {
	ID, Pod   string
	Pid       int       // of the first process, as the shim sees it; still set after the exit
	StartedAt time.Time // when the runtime returned
	Exit      *Exit     // nil until the task has exited
	State     string    // one of the State constants

	// RuntimeBegan and RuntimeTook are of the OCI runtime that started the task, in the reply to its
	// start only. Shims of earlier versions leave them out.
	RuntimeBegan time.Time     `json:",omitzero"`
	RuntimeTook  time.Duration `json:",omitempty"`
}

// States of a task, as in Task.State.
const (
	StateCreated  = "created" // only its folder exists
	StateStarting = "starting"
	StateRunning  = "running"
	StateExited   = "exited"
)

// Exec describes an additional process in a running task.
type Exec struct {
	ID      string
	Runtime string // absolute path; "" = the runtime that started the task
	Process []byte // OCI process, JSON
	// Session: a client opened this exec and may leave it open. Above the limit of sessions per
	// task, Exec returns ErrResourceExhausted.
	Session bool
	// Native: execute it without the runtime where package place can do exactly what the runtime
	// would do, which must be runc.
	Native bool

	// Stdin, Stdout and Stderr become the process's standard streams; nil = /dev/null. The caller
	// still closes its own copies. Ignored when the process has a terminal.
	Stdin, Stdout, Stderr *os.File

	// OnStarted, if set, is called once the process runs, before OnTerminal.
	OnStarted func()

	// OnTerminal receives the terminal's master, and must close it, once the process runs. Required
	// if and only if process.terminal is true.
	OnTerminal func(master *os.File)

	LockFile string // as in Start; "" = the lock file of the task
}

// Update describes new limits for a running task.
type Update struct {
	ID        string
	Resources []byte // OCI linux.resources, JSON; limits that are not set do not change
	// Previous has the old value of every limit that Resources sets. After a failure systemd is set
	// back to it.
	Previous    []byte
	OOMScoreAdj *int   // for every process in the task's cgroup; nil = unchanged
	LockFile    string // as in Start; "" = the lock file of the task
}

// Streams are the daemon's ends of the streams of a task that was started with Terminal or Stdin;
// nil where the task has no such stream. The receiver closes them.
type Streams struct {
	// Terminal is the master, for stdin and the window size. Do not read from it: its output goes
	// to the log.
	Terminal *os.File
	Stdin    *os.File // write end of the pipe; with StdinOnce only the first caller gets it
}

// Close closes both streams. It may be called more than once.
func (s Streams) Close() {
	for _, f := range []*os.File{s.Terminal, s.Stdin} {
		if f != nil {
			f.Close()
		}
	}
}

// Features is what a runtime reports about itself (features.md of the OCI runtime specification).
type Features struct {
	UserNamespaces    bool   `json:"userNamespaces"`       // can create and join user namespaces
	IDMappedMounts    bool   `json:"idMappedMounts"`       // can id-map mounts
	RecursiveReadOnly bool   `json:"recursiveReadOnly"`    // knows the mount option rro
	Version           string `json:"version,omitempty"`    // of the runtime, if reported
	OCIVersion        string `json:"ociVersion,omitempty"` // the newest that it supports
	Flaw              string `json:"flaw,omitempty"`       // the worst known bug of this version
	// Native: it is a runc, and one of which cribox can do the same natively.
	Native bool `json:"native,omitempty"`
}

// RuncAdvice tells the administrator how to get rid of a known bug of runc.
const RuncAdvice = "install runc 1.3.6, 1.4.3, 1.5.0 or newer"
