//go:build !amd64

package sandbox

// x32 exists on amd64 alone.
func x32() bool { return false }
