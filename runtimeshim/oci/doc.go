// Package oci drives OCI command line runtimes: it builds and runs their
// commands, reads what they say and leave behind, and knows nothing of tasks.
package oci
