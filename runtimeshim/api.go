package runtimeshim

import (
	"os"
	"time"
)

// Start says what to run. The strings in it are trusted: the caller has checked them.
type Start struct {
	ID      string // container or pod id, [a-z0-9-]{1,64}
	Pod     string // id of the pod task whose keeper holds this task's descriptors; "" for a pod task itself
	Runtime string // absolute path of an OCI command line runtime
	Spec    []byte // config.json
	// SpecFile has Spec in it, or what has replaced it since; it is never written to, only
	// replaced. A file on the same file system is not copied. "" = there is none.
	SpecFile string

	Terminal  bool // must agree with process.terminal of Spec
	Stdin     bool // keep stdin open for Streams; otherwise it is /dev/null
	StdinOnce bool // Streams gives stdin away, so that its first user closes it

	// OwnerUID and OwnerGID own the FIFOs and the pipe that are the task's streams; they must be
	// root of the user namespace of Spec, or its processes cannot open /dev/stdout again.
	OwnerUID, OwnerGID int

	LogPath  string // absolute path of the CRI log; "" = output is consumed and dropped
	LogLimit int64  // bytes that the log takes until it is rotated, at least MinLogLimit; 0 = any number
	OOMFile  string // v1 <memory cgroup>/memory.oom_control, v2 <cgroup>/memory.events; "" = OOMKilled is never told
	LockFile string // in the state folder; locked shared by every runtime process of the task; "" = one of the task's own
	// SystemdCgroup: cgroupsPath of Spec is SLICE:PREFIX:NAME, and systemd makes the cgroup
	// (CgroupOf says where).
	SystemdCgroup bool
	Keeper        bool // a pod task: descriptor 3 of its process is the socket that keeps its containers' descriptors
}

// MinLogLimit is the least LogLimit, a few of the longest lines.
const MinLogLimit = 64 << 10

// Exit is how a task ended.
type Exit struct {
	Code      int32     // 0..255; 128+n when killed by signal n; 255 when not known
	Known     bool      // false: the task has ended while nobody could learn how
	OOMKilled bool      // the OOM killer was in its cgroup, and not before a SIGKILL of ours; that it hit the first process is the caller's to conclude
	At        time.Time // when it was seen
}

// Task is one task as the shim knows it.
type Task struct {
	ID, Pod   string
	Pid       int       // of the first process, as the shim sees it; stays after the exit
	StartedAt time.Time // when the runtime had returned
	Exit      *Exit     // nil while there is none
	State     string    // one of those below
}

// States of a task, as in Task.State.
const (
	StateCreated  = "created" // there is its folder only
	StateStarting = "starting"
	StateRunning  = "running"
	StateExited   = "exited"
)

// Exec is one more process in a running task.
type Exec struct {
	ID      string
	Runtime string // absolute path; "" = the one that has started the task
	Process []byte // OCI process, JSON
	Session bool   // of a client, who may leave it open: a task has so many at a time, then ErrResourceExhausted

	// Stdin, Stdout and Stderr become the process's own; nil = /dev/null. They
	// stay the caller's to close. Not used when the process has a terminal.
	Stdin, Stdout, Stderr *os.File

	// OnStarted, unless nil, is called once the process runs, before OnTerminal.
	OnStarted func()

	// OnTerminal gets the terminal's master, its to close, once the process
	// runs. Required if and only if process.terminal is true.
	OnTerminal func(master *os.File)

	LockFile string // as in Start; "" = that of the task
}

// Update says what a running task may use from now on.
type Update struct {
	ID        string
	Resources []byte // OCI linux.resources, JSON; what it does not name stays as it is
	// Previous is what Resources was before, with a word for every limit that Resources sets:
	// systemd gets it back after a failure.
	Previous    []byte
	OOMScoreAdj *int   // of every process in the task's cgroup; nil = they stay as they are
	LockFile    string // as in Start; "" = that of the task
}

// Streams are the daemon's ends of a task that was started with Terminal or
// Stdin; nil where it has none. The receiver closes them.
type Streams struct {
	Terminal *os.File // master: stdin, window size; its output goes to the log, do not read it
	Stdin    *os.File // writing end of the pipe; with StdinOnce only the first caller gets it
}

// Close may be called twice.
func (s Streams) Close() {
	for _, f := range []*os.File{s.Terminal, s.Stdin} {
		if f != nil {
			f.Close()
		}
	}
}

// Features is what a runtime says that it can do (features.md of the OCI runtime specification).
type Features struct {
	UserNamespaces    bool   `json:"userNamespaces"`       // it joins and makes them
	IDMappedMounts    bool   `json:"idMappedMounts"`       // it maps the ids of mounts
	RecursiveReadOnly bool   `json:"recursiveReadOnly"`    // it knows the mount option rro
	Version           string `json:"version,omitempty"`    // of the runtime, if it says so
	OCIVersion        string `json:"ociVersion,omitempty"` // the newest that it implements
	Flaw              string `json:"flaw,omitempty"`       // the worst that is known of this version
}

// RuncAdvice is what to do about a flaw of runc.
const RuncAdvice = "install runc 1.3.6, 1.4.3, 1.5.0 or newer"
