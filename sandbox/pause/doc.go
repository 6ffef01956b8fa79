// Package pause is the first process of every pod, as bytes: it holds the
// pod's namespaces, reaps its orphans and leaves on SIGTERM.
//
// It will not run it, nor decide where it is put; it reads nothing, opens
// nothing and knows nothing of pods.
//
// The program is pause.c, built by build.sh into pause_amd64 and pause_arm64,
// which are committed. Its contract stands at the top of pause.c. It takes no
// arguments and no environment and needs an otherwise empty root filesystem
// only. As pid 1 of a pod it must be given a mode with execute permission for
// whatever user the pod runs it as (0555).
package pause

// Binary returns the static executable for the architecture of this process.
// The caller owns the slice.
func Binary() []byte { return []byte(binary) }
