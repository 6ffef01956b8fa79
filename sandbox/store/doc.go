// Package store remembers exactly what it was told.
//
// It keeps one small record per pod, in memory and in a folder on disk, and the bytes of what the
// kubelet asked for beside it. It does not know what a state means, starts nothing, and never
// decides which record is right.
//
// On disk a pod is a folder of its own:
//
//	pods/<id>/asked          the request, verbatim, written once
//	pods/<id>/<cid>.asked    a container's request, verbatim, written once
//	pods/<id>/state          the record: the pod and its containers, rewritten as a whole
//
// Writes are write-and-rename without fsync: a power cut ends the processes that a record speaks
// of, so the record need not survive it. A record that is damaged costs one pod: it is set aside
// under a name that ends in ".torn" and reported, and start-up goes on. One that cannot be read now
// costs nothing: a second folder, in memory, has a copy of each file, and without that the record
// waits until it can be read.
package store
