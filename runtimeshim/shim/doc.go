// Package shim is the parent of every task: it starts, signals, limits and removes them, and writes
// an exit to a file before it reports it.
//
// It opens files only in the state folder, /proc and /sys, and /dev/null. It waits for processes in
// one place only, and does nothing that the client has not requested.
package shim
