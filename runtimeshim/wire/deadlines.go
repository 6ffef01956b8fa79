package wire

import "time"

// Deadlines of the commands that the shim runs. The deadlines of its clients must be longer. A
// command that exceeds its deadline is killed together with its process group. Tests shorten them.
var (
	StartWait = 60 * time.Second
	// PlaceWait is that of a start without the runtime, and of systemd's answer for its scope. After both,
	// the runtime still has its StartWait before the client gives up.
	PlaceWait  = 15 * time.Second
	DeleteWait = 30 * time.Second
	UpdateWait = 30 * time.Second
	// KilledWait is the time from SIGKILL to the end of a process that is not stuck in the kernel.
	KilledWait = 5 * time.Second
	DeathWait  = 10 * time.Second // from SIGKILL to the end of a task
)
