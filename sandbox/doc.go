// Package sandbox is the only package that knows what a pod or a container is, and the only writer of
// their records.
//
// It turns what the kubelet asks for into calls of the other packages: an image becomes a root
// filesystem (imageservice), a network namespace is connected (cni), a process is started and
// watched (runtimeshim), a request becomes an OCI spec (sandbox/spec), and what was decided is
// remembered (sandbox/store). It pulls no image, runs no program (but for the moment in which
// sandbox/userns makes a namespace) and speaks no gRPC.
//
// Three rules hold everywhere:
//
//   - An in-between state is written before the act, so that after a crash the record says what was being done (recover.go).
//   - Cleaning up is one function that may be called at any time and any number of times: teardown for a pod, discard for a container. It
//     runs on a clock of its own, never on the caller's.
//   - Lists and statuses are answered from memory. Nothing that waits for a disk, a plugin or a process stands in their way.
//
// A request that arrives again while the first is under way joins it (keyed.Flights). Work on one
// container takes turns (keyed.Turns); no mutex is held while anything outside memory is touched.
//
// Steps, where crash tests may end the process: pod.recorded, pod.files, pod.started, pod.ready,
// pod.stopping, pod.unplugged, pod.removing, pod.forgotten, container.recorded, container.mounted,
// container.prepared, container.created, container.starting, container.started, container.running,
// container.updating, container.limited, container.updated, container.stopping, container.exited,
// container.removing, container.trashed, container.forgotten; and those of the packages below.
package sandbox
