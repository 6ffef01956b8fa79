// Package server turns a CRI message into a call and a result into a message; it remembers nothing.
//
// It decides nothing about pods, containers or images, keeps no state of its own but a count of the
// fields that it does not know, and is the only package that speaks gRPC. What concerns every
// request alike (is the daemon ready, a panic, the line in the log, fields of a newer API, the gRPC
// code of an error) is one interceptor.
package server
