// Package streaming carries exec, attach and port-forward between a client and a function.
//
// It speaks the protocols (SPDY, and WebSocket in two forms) and gives out the URLs, each of which
// is good once, for a minute. It does not know what a pod or a container is: the function that a
// URL stands for is given when the URL is made.
package streaming
