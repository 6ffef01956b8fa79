// Package shim is the parent of every task: it starts, signals, limits and
// removes them, and writes an exit down before it tells anybody.
//
// It will not: open a file outside the state folder, /proc, /sys and /dev/null,
// wait for a process in more than one place, or decide anything that the
// client has not asked for.
package shim
