// Package place starts the process of a task without an OCI runtime, where it can do exactly what
// runc would do: the pause process of a pod, which has no privilege, no device and no mount of the
// host. Unable says what it cannot do, and everything that it does not know is in that list.
//
// It also executes commands in a container that a runc has started, exactly as that runc would:
// NewContainer and UnableCommand say what it cannot do.
//
// It knows nothing of tasks, runs nothing itself and opens no file outside /proc, /sys and the
// namespaces that a spec names. The caller executes a Job, has systemd make its scope if it has one,
// and removes the cgroups.
//
// Cgroups of version 1 are in cgroups1.go, those of version 2 in cgroups2.go.
//
// The program is place.c, built by build.sh into place_amd64 and place_arm64, which are committed.
// Its contract stands at the top of place.c.
//
// A seccomp filter is not compiled here. Runc starts the first process that has a given profile,
// Take reads the filter from that process, and later ones get the same bytes.
package place
