// Package program runs network plugins and tools of the system, and leaves nothing of them behind.
//
// Every program runs in a process group of its own, with a fixed environment. When its deadline
// passes, or it fails, every process that it started is killed. The package knows no network and
// no pod.
package program
