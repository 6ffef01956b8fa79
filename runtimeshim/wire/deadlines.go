package wire

import "time"

// Deadlines of the commands that the shim runs. The deadlines of its clients must be longer. A
// command that exceeds its deadline is killed together with its process group. Tests shorten them.
var (
	StartWait  = 60 * time.Second
	DeleteWait = 30 * time.Second
	UpdateWait = 30 * time.Second
	// KilledWait is the time from SIGKILL to the end of a process that is not stuck in the kernel.
	KilledWait = 5 * time.Second
	DeathWait  = 10 * time.Second // from SIGKILL to the end of a task
)
