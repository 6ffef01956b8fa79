// Package cgroup reads what a cgroup uses, straight from the kernel's files; it remembers nothing.
//
// A figure is a pointer: nil is what the kernel does not count here, or what could not be read, and
// is never told as zero. Usage is what is asked for often and costs few files; Detail adds what
// metrics tell. Both versions of cgroups give the same figures, in the same units: bytes,
// nanoseconds, numbers of things.
//
// It will not walk: every file is named, and a cgroup's figures are those of all that is below it,
// as the kernel adds them up.
package cgroup
