// Package admin answers what cribox's own commands ask of the daemon and the CRI has no call for. It
// remembers nothing.
//
// It speaks HTTP on a Unix socket that only root can open. An answer that takes long is a line of
// JSON for each Event; the last one has the result or the error.
//
//	GET    /v1/images                  []Image
//	GET    /v1/images/NAME             Image
//	DELETE /v1/images/NAME             nothing
//	POST   /v1/pull     PullRequest    Events, the last with the image
//	POST   /v1/load?name=NAME          an archive; Events, the last with all images
//	POST   /v1/take     TakeRequest    Events
//	GET    /v1/save?name=NAME&...      an archive; after an error it is cut off, and the trailer
//	                                   Cribox-Error says why
//	PUT    /v1/pins/NAME               nothing: the name is pinned
//	DELETE /v1/pins/NAME               nothing: it is not any more
//	POST   /v1/prune?dry=true          []Image
//	POST   /v1/verify   VerifyRequest  Events, the images of each since the line before
//	GET    /v1/pulls                   []Pull
//	GET    /v1/why/NAME                []Story
//	GET    /v1/top                     []Use
//	GET    /v1/debts                   []Debt
//
// NAME is escaped as one part of the path.
package admin
