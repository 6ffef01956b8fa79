// Package wire carries calls between daemon, shim and logger: frames on unix
// sockets, and the bodies of the verbs. It does not know what a verb does.
package wire
