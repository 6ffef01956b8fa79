// Package rootfs makes what a container sees as its files, and knows no state: every removal can be
// repeated, wherever the files are.
//
// That is root filesystems and image volumes, which are mounted; volumes of the image, which are
// copied; and host paths, which are created when they are missing. It keeps no record, starts
// nothing and decides nothing about a pod.
//
// Steps: container.volume, container.hostpath.
package rootfs
