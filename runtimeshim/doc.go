// Package runtimeshim has the words in which the daemon speaks of tasks: what to
// start, what runs, how it has ended. What does it is in the folders below: the
// shim (parent of every task), the logger (reader of what tasks print) and the
// client that finds both again. Another runtime driver would take and give the
// same values.
//
// They will not: know what a pod or a container is beyond a name that groups
// tasks, pull or mount anything, connect networks, decide restarts, or write
// anything but the CRI log outside its state folder. It has never heard of
// Kubernetes.
//
// # Processes
//
//	daemon (Client) --shim.sock---> shim    parent of all tasks, one per state folder
//	                --logger.sock-> logger  reads the FIFOs, writes the logs
//
// Each may be killed at any instruction; what runs does not notice, and no
// exit and no output is lost:
//
//   - A task's stdout and stderr are FIFOs which the task itself holds open for
//     reading and writing. Without a logger it just waits when they are full.
//   - The shim writes an exit to a file before it tells anybody. What a dead
//     shim had not written is learned by its successor, in this order: file exit,
//     PIDFD_GET_INFO (Linux 6.15), /proc/PID/stat of a zombie, else not Known.
//   - The descriptors that this takes stay open in flight in a socket of the
//     pod's own process, which does not know of it (keeper).
//   - A runtime in flight when the shim dies finishes; the successor takes the
//     task over when its pid file names a process, and undoes the start otherwise.
//     Nobody has a descriptor of that process before: when it ends earlier than
//     the successor looks, its exit is not Known.
//
// The client starts the shim or the logger when its lock is free, that is, when
// it is dead; one that is slow is ErrUnavailable.
//
// # Steps
//
// Client: client.spawn.shim, client.spawn.logger, client.start.intent,
// client.start.folder, client.start.log, client.start.done, client.kill,
// client.exec, client.update, client.exit (before OnExit), client.release,
// client.delete.
//
// Shim: shim.adopt, shim.adopt.start, shim.start.intent (record written),
// shim.start.runc (runtime ended well), shim.start.kept (its pod keeps what must
// survive), shim.start.started, shim.exit.seen,
// shim.exit.written, shim.exec.intent, shim.exec.runc, shim.update.intent (what
// was before is written), shim.update.runc, shim.delete.kill, shim.delete
// (before the runtime's delete), shim.delete.cleared.
//
// Logger: logger.created, logger.reopened, logger.spliced, logger.intent,
// logger.written, logger.leftout, logger.committed, logger.drained, logger.done,
// spool.truncated, spool.reset, spool.punched.
package runtimeshim
