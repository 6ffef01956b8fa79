// Package userns makes user namespaces that no process lives in, and keeps them by a name in the
// file system.
//
// It will not decide which ids a namespace gets, nor who may have it, and remembers nothing: what
// is pinned is found by its path. A namespace can be made by a new process only, so New starts one,
// of a program that does nothing, for as long as it takes to open what it is in.
package userns
