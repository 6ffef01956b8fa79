// Package sandbox is the only package that knows what a pod or a container is, and the only writer of
// their records.
//
// It turns a request of the kubelet into calls of the other packages: an image becomes a root
// filesystem (imageservice), a network namespace is connected (cni), a process is started and
// watched (runtimeshim), a request becomes an OCI spec (sandbox/spec), and decisions are stored
// (sandbox/store). It pulls no image, speaks no gRPC, and runs no program, except that
// sandbox/userns starts one to make a namespace.
//
// Three rules hold everywhere:
//
//   - An in-between state is written before the act, so that after a crash the record says what was
//     being done (recover.go).
//   - Cleaning up is one function that may be called at any time and any number of times: teardown
//     for a pod, discard for a container. It has a deadline of its own, independent of the caller's.
//   - Lists and statuses are answered from memory. They never wait for a disk, a plugin or a process.
//
// A request that arrives again while the first is in progress joins it (keyed.Flights). Operations on
// one container follow each other (keyed.Turns). No mutex is held during I/O.
//
// Steps, where crash tests may end the process: pod.recorded, pod.files, pod.started, pod.ready,
// pod.stopping, pod.unplugged, pod.removing, pod.forgotten, container.recorded, container.mounted,
// container.prepared, container.created, container.starting, container.started, container.running,
// container.updating, container.limited, container.updated, container.stopping, container.exited,
// container.removing, container.trashed, container.forgotten; and those of the packages below.
package sandbox
