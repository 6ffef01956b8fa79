// Package migrate reads the files of containerd or CRI-O and says what they are in cribox: settings,
// folders of registries, and images that are already on the disk. It asks no daemon, and writes
// only the files of its plan, each of which its journal names.
//
// Every key that the other runtime's file sets gets one line: it is taken, it is the same in cribox
// anyway, or it has no counterpart. A key that this package has never heard of has no counterpart.
package migrate
