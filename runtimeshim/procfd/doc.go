// Package procfd refers to processes by descriptors, so that a number which the
// kernel has given away is never taken for the process that had it before.
package procfd
