// Package runtimeshim defines the values in which the daemon describes tasks: what to start, what
// runs, how it ended. The sub-packages do the work: the shim (parent of every task), the logger
// (reads the output of tasks) and the client that finds and starts both. Another runtime driver
// would use the same values.
//
// None of them knows what a pod or a container is (a pod is only an id that groups tasks), pulls or
// mounts anything, connects networks, decides about restarts, or writes anything outside its state
// folder except the CRI log. They know nothing about Kubernetes.
//
// # Processes
//
//	daemon (Client) --shim.sock---> shim    parent of all tasks, one per state folder
//	                --logger.sock-> logger  reads the FIFOs, writes the logs
//
// Each of these processes may be killed at any instruction. Tasks keep running, and no exit status
// and no output is lost:
//
//   - A task's stdout and stderr are FIFOs which the task itself holds open for
//     reading and writing. Without a logger the task blocks once they are full.
//   - The shim writes an exit to a file before it reports it. A new shim finds an exit
//     that the old one did not write, in this order: the file exit, PIDFD_GET_INFO
//     (Linux 6.15), /proc/PID/stat of a zombie; otherwise the exit is not Known.
//   - The descriptors needed for this stay open as messages in flight in a socket
//     that the pod's own process inherits without using it (the keeper).
//   - A runtime that is running when the shim dies runs to its end. The new shim takes
//     the task over if the pid file names a process, and otherwise undoes the start.
//     Until then nobody holds a pidfd of that process: if it ends before the new shim
//     looks, its exit is not Known.
//
// The client starts the shim or the logger when its lock is free, that is, when it is dead. A call
// to one that is alive but slow returns ErrUnavailable.
//
// # Steps
//
// Client: client.spawn.shim, client.spawn.logger, client.start.intent,
// client.start.folder, client.start.log, client.start.done, client.kill,
// client.exec, client.update, client.exit (before OnExit), client.release,
// client.delete.
//
// Shim: shim.adopt, shim.adopt.start, shim.start.intent (record written),
// shim.place.cgroups (a process is about to be started without a runtime),
// shim.place.scope (systemd has put it into its scope, in which it waits),
// shim.place.filter (the seccomp filter of an earlier process is known),
// shim.start.runc (runtime succeeded), shim.start.kept (the pod's keeper socket has
// the descriptors), shim.start.started, shim.exit.seen,
// shim.exit.written, shim.exec.place (a command is about to be
// executed without a runtime), shim.exec.placed, shim.exec.intent, shim.exec.runc, shim.update.intent (old
// limits written), shim.update.runc, shim.delete.kill, shim.delete
// (before the runtime's delete), shim.delete.cleared.
//
// Logger: logger.created, logger.reopened, logger.spliced, logger.intent,
// logger.written, logger.leftout, logger.committed, logger.drained, logger.done,
// spool.truncated, spool.reset, spool.punched.
package runtimeshim
