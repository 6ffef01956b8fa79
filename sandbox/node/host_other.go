//go:build !amd64

package node

// x32 exists on amd64 alone.
func x32() bool { return false }
