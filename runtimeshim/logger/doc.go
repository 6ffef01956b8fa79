// Package logger reads what tasks print from their FIFOs and writes it to their CRI logs and to
// attached clients. It may be killed at any instruction and restarted; package crilog keeps the
// lines intact.
//
// It does not create a task's folder or FIFOs, decide when a log is rotated, or know how a task
// ended.
package logger
