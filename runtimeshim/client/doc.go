// Package client is the daemon's end: it finds the shim and the logger, starts
// them when they are dead, and asks them.
//
// It will not: remember a task. What there is, the shim knows.
package client
