// Package helper is what shim and logger have in common as processes that
// outlive the daemon: a lock, an environment, a bounded log, a build.
package helper
