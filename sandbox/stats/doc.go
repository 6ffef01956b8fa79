// Package stats reads what pods and containers use: processor, memory, disk, network.
//
// What it will not do: change a record, or answer later because a disk is slow. Sizes of writable
// layers are measured in the background and remembered.
package stats
