// Package statedir is the state folder that the daemon, the shim and the logger
// share: the names in it, and the records that each of them can read of any
// version of the others.
package statedir
