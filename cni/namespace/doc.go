// Package namespace creates, pins and removes network namespaces, and connects to ports in them; it
// knows no network.
package namespace
