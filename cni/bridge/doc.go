// Package bridge makes a bridge, and connects network namespaces to it over netlink. It runs no
// program, chooses no address, and remembers nothing: everything that it makes for a container has
// a name that follows from the container's id.
package bridge
