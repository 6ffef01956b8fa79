// Package streams connects clients with the processes and ports of containers: exec, attach,
// port-forward.
//
// What it will not do: change a record, wait without an end for a client that has left, or keep
// more of an output than there is room for.
package streams
