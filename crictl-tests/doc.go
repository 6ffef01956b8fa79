// Package crictltests drives the real cribox binaries through their socket, with crictl and with a
// Go client, and looks at what the host shows of it. The tests are in one folder per subject;
// package harness has what they share.
//
// It imports no package of cribox. It kills nothing that it did not start, and leaves the host as
// it was: every test ends with its ledger flat.
package crictltests
