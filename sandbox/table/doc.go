// Package table knows every pod and container of this daemon, and is the only writer of their
// records: a state is changed in states.go and nowhere else.
//
// What it will not do: make, start or stop anything. It does what it is told, and refuses what is
// no legal step from the state in which something is.
package table
