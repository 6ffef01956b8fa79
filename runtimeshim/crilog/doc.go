// Package crilog writes what a task prints into its CRI log so that a kill at
// any instruction neither loses nor doubles a line. It starts no goroutine and
// opens nothing: all it does to the outside are operations of a few Files.
//
// It will not: read what a task prints, find or rotate a log, wait, or try
// again. The caller does, and calls Resume before it goes on after an error.
//
// # The order that no kill can confuse
//
//	intent   progress says: the log has `before` bytes, `length` more follow, made
//	         from the spool up to `to` at time `at`
//	write    appended to the log
//	         (the next save of progress says that it is complete)
//
// A Writer that finds an intent compares the size of the log with it and
// writes what is missing, which is the same bytes again: how lines are cut
// depends on the bytes of the stream alone. The same code serves after a kill,
// a full disk and an I/O error.
package crilog
