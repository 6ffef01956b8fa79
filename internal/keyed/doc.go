// Package keyed keeps operations on the same thing apart, or together: Turns makes them follow each
// other, Flights lets a second request for the same work share the first one's result.
//
// It holds no lock while anybody works or waits, and forgets a key when nobody uses it.
package keyed
