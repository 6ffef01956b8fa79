// Package layout says where everything of a pod or container lies: same ids, same paths.
//
// What it will not do: look at the disk, but for making the folders that all else lies in.
package layout

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Layout is the places of one daemon. Root survives a reboot, State does not need to, and Instance
// marks what the daemon makes elsewhere on the host.
type Layout struct{ Root, State, Instance string }

// RootPath returns a path below Root.
func (l Layout) RootPath(parts ...string) string {
	return filepath.Join(append([]string{l.Root}, parts...)...)
}

// StatePath returns a path below State.
func (l Layout) StatePath(parts ...string) string {
	return filepath.Join(append([]string{l.State}, parts...)...)
}

// Make makes the folders that everything else lies in.
func (l Layout) Make() error {
	for _, dir := range []string{l.StatePath("pods"), l.StatePath("rootfs"), l.StatePath("volumes"), l.StatePath("locks"),
		l.RootPath("containers")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return os.MkdirAll(l.StatePath("userns"), 0o711)
}

// NetNS is where a pod's network namespace is pinned: a name that ip-netns(8) lists.
func (l Layout) NetNS(id string) string {
	return filepath.Join("/run/netns", "cribox-"+l.Instance+"-"+id)
}

// PodFile is a file of a pod below State: these end with the pod's processes.
func (l Layout) PodFile(id, name string) string { return l.StatePath("pods", id, name) }

// LockPath is the file that every network plugin and runtime process of a pod inherits.
func (l Layout) LockPath(id string) string { return l.StatePath("locks", id) }

// UserNS is where the user namespace of a pod that has one is pinned. It ends with the pod's files.
func (l Layout) UserNS(id string) string { return l.PodFile(id, "userns") }

// PauseNS is the folder in which the namespaces of the pause process are pinned.
func (l Layout) PauseNS(id string) string { return l.PodFile(id, "ns") }

// TargetNS is where the PID namespace is pinned that a container of mode TARGET joins.
func (l Layout) TargetNS(podID, id string) string {
	return l.PodFile(podID, filepath.Join(id, "pidns"))
}

// PodSpecPath is the OCI spec of the pause process, among the pod's files.
func (l Layout) PodSpecPath(id string) string { return l.PodFile(id, "config.json") }

// SpecPath is the OCI spec of a container, among the files of its pod: it ends with them.
func (l Layout) SpecPath(podID, id string) string {
	return l.PodFile(podID, filepath.Join(id, "config.json"))
}

// RootPlaces returns every place where the root filesystem can be: what a pod asked for may be
// lost.
func (l Layout) RootPlaces(id string) []string {
	return []string{l.StatePath("rootfs", id), filepath.Join(l.StatePath("userns", id), "root")}
}

// VolumePlace is where the image of mount i is mounted for a container, images being the ids of all
// that its mounts name: mounts of the same image share the place.
func (l Layout) VolumePlace(id string, images []string, i int) string {
	return l.StatePath("volumes", id, strconv.Itoa(slices.Index(images, images[i])))
}

// Volumes is the folder of a container's volumes, beside its writable layer.
const Volumes = "volumes"

// Upper is the folder of what the container has written.
func (l Layout) Upper(id string) string { return l.RootPath("containers", id, "upper") }
