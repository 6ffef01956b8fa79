// Package oci drives OCI runtimes: it builds and runs their commands, and reads their output and
// files. It knows nothing about tasks.
package oci
