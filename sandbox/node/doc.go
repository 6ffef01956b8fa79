// Package node knows what this machine and its OCI runtimes can do, and what a pod or container is
// given or refused for that.
//
// What it will not do: know a pod. It is asked about a handler, or about what a pod's record says.
package node
