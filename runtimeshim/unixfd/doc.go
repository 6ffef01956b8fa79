// Package unixfd has what the standard library lacks for descriptors: plain
// ones without an os.File, and those that travel over sockets.
package unixfd
