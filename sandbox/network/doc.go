// Package network connects pods to networks, and gives back what they held of them; it changes no
// record.
//
// Every plugin and every runtime process of a pod inherits the pod's lock file, so that those that
// outlive the daemon are found and ended before the pod's addresses are given back. A plugin that
// fails is asked again, in the background, until it succeeds.
//
// Steps: pod.userns.
package network
