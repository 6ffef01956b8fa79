// Package cgroup finds, reads, signals, limits and removes the cgroups of tasks,
// in both versions, and never touches those of this process.
package cgroup
