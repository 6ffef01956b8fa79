// Package lease hands out addresses and takes them back, in the folder and the format of the plugin
// host-local, so that either can release what the other has taken. It knows no links and no pods.
//
// A folder has one file per address, named like it, with the id of the container and the name of
// its link. The file lock makes host-local wait. An address appears with its content in one step,
// so that a process that is killed leaves no lease without an owner.
package lease
