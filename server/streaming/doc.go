// Package streaming carries exec, attach and port-forward between a client and a function.
//
// It implements the protocols (SPDY, and two over WebSocket) and issues the URLs, each of which can
// be used once, within a minute. It does not know pods and containers: the caller that creates a
// URL passes the function that serves it.
package streaming
