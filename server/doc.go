// Package server translates CRI requests into calls, and results into responses.
//
// It decides nothing about pods, containers or images, has no state except a count of unknown
// fields, and is the only package that uses gRPC. One interceptor does what every request needs: it
// refuses requests until the daemon is ready, recovers from panics, writes the log line, counts
// fields of a newer API, and chooses the gRPC code of an error.
package server
