// Package logger reads what tasks print from their FIFOs and carries it to
// their CRI logs and to attached clients. It may be killed at any instruction
// and started again; package crilog keeps the lines whole.
//
// It will not: create a task's folder or FIFOs, decide when a log is rotated,
// or know how a task ends.
package logger
