// Package apparmor knows what profiles the kernel has, and gives it the one that containers have
// which ask for none.
//
// The profile is text of our own that needs no file of the host: no abstractions, no tunables.
// apparmor_parser turns it into what the kernel takes. It lives in the kernel: it survives the
// daemon, and is asked for by name whenever a container is made, because a person, or a tool that
// drops what /etc/apparmor.d does not name, can take it away.
//
// It will not read or write the profiles of others.
package apparmor
