// Package crilog writes the output of a task to its CRI log so that a kill at any instruction
// neither loses nor duplicates a line. It starts no goroutine and opens nothing: its only side
// effects are operations on a few Files.
//
// It does not read the output of a task, find or rotate a log, wait, or retry. The caller does, and
// calls Resume before it continues after an error.
//
// # The order of writes
//
//	intent   progress records: the log has `before` bytes, and `length` more follow,
//	         formatted from the spool up to `to`, with the time `at`
//	write    append them to the log
//	         (the next save of progress implies that the append is complete)
//
// A Writer that finds an intent compares it with the size of the log and writes what is missing.
// These are the same bytes as before, because how lines are split depends only on the bytes of the
// stream. The same code runs after a kill, a full disk and an I/O error.
package crilog
