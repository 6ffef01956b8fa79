// Package keyed coordinates operations with the same key: Turns runs them one after another, Queues
// does so in the background, and Flights lets a second request for the same work share the result of
// the first.
//
// It holds no lock while an operation runs or waits, and forgets keys that are not in use.
package keyed
