// Package selinux makes the labels of pods and of what they may touch, and gives files their
// labels.
//
// A pod has a pair of labels: of its processes, and of its files. Their level is a pair of
// categories that no other pod of this daemon has, unless the request names one. The containers of
// a pod have the pod's labels, with what their own request puts in place of parts of them.
//
// What needs a kernel with SELinux is left to go-selinux: the policy's contexts and the categories
// in use. It will not say who gets which label, and knows no pods.
package selinux
