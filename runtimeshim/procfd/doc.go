// Package procfd refers to processes by pidfd, so that a pid which the kernel has reused is never
// taken for the process that had it before.
package procfd
