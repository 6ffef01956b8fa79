// Package tree counts, walks and deletes folders with untrusted content, however deep, wide or
// oddly named.
//
// A container or an image can nest folders tens of thousands deep: more than fit into a path, and
// more than a process can have descriptors. So below the folder that it is given, this package
// never builds paths, never follows links, and never holds more than a fixed number of descriptors.
//
// It does not know what a folder belongs to, and does not decide what to delete.
package tree
