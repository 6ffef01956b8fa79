// Package harness runs a cribox daemon for a test, asks it for pods, containers and images, and
// looks at the host: nothing of the daemon may be left when the test ends.
//
// It has no tests. What only one subject needs is in the folder of that subject.
package harness
