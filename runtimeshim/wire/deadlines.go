package wire

import "time"

// Deadlines of what the shim executes, which those of its clients must be longer than. A command
// that is over its own is killed with its process group. Tests shorten them.
var (
	StartWait  = 60 * time.Second
	DeleteWait = 30 * time.Second
	UpdateWait = 30 * time.Second
	KilledWait = 5 * time.Second  // from SIGKILL to the end of a process that is not stuck in the kernel
	DeathWait  = 10 * time.Second // a task may take so long to end after SIGKILL
)
