package spec

import (
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/users"
)

// Pod is a pod as its containers see it: the request and where its parts are.
type Pod struct {
	ID             string
	Config         *runtimeapi.PodSandboxConfig
	RuntimeHandler string

	// NetNS is the path of the pod's network namespace; "" when the pod uses the host's.
	NetNS string
	// UserNS is the path of the pod's user namespace; "" when the pod uses the host's.
	UserNS string
	// PauseNS is a folder with the namespaces of the pause process, by the names that /proc/PID/ns
	// has for them; empty while the pod itself is made.
	PauseNS string
	// Hostname of the pod. The caller chooses one when the request has none.
	Hostname string

	// Rootfs of the pause process: a folder that holds /pause and the folders
	// PodRootfsDirs. Nothing is written to it; pods may share it.
	Rootfs string
	// ShmPath is the tmpfs that is /dev/shm of the pod; "" is the host's when the pod uses the
	// host's IPC.
	ShmPath string
	// HostsPath, HostnamePath and ResolvConfPath are files mounted below /etc of every
	// container whose request mounts nothing there; "" mounts nothing.
	HostsPath, HostnamePath, ResolvConfPath string

	// SeccompProfile holds the bytes of the file PodSeccompPath, if that is not "".
	SeccompProfile []byte
	// ProcessLabel and MountLabel are the SELinux labels of the pod, "" for none.
	ProcessLabel, MountLabel string
}

// PodRootfsDirs are the folders that the rootfs of the pause process needs beside the file /pause.
var PodRootfsDirs = []string{"dev", "proc"}

// PauseUser is the user and group of the pause process: nobody else's, so that
// a container of the pod that shares its process namespace cannot signal it.
const PauseUser = 65535

// Container is a container's request and what the caller found out about it.
type Container struct {
	ID        string
	Config    *runtimeapi.ContainerConfig
	Image     ocispec.Image
	ImageName string
	User      users.User
	// Rootfs is the mounted root filesystem.
	Rootfs string
	// Mounts belongs to Config.Mounts, entry by entry.
	Mounts []Mount
	// Volumes are the anonymous directories of the image: see ImageVolumes.
	Volumes []Volume
	// Devices belongs to Config.Devices (one entry may have become several),
	// and for a privileged container holds those of the host too.
	Devices []Device
	// SeccompProfile holds the bytes of the file ContainerSeccompPath, if that is not "".
	SeccompProfile []byte
	// TargetNS is the PID namespace that is joined in mode TARGET.
	TargetNS string
	// ProcessLabel and MountLabel are SELinux labels, "" for none.
	ProcessLabel, MountLabel string
}

// Mount is what the caller found out about one mount of a request.
type Mount struct {
	// Source is the directory or file to bind: host_path with every symlink
	// resolved, or where the image volume is mounted.
	Source string
	// Shared and Slave tell about the mount that Source lies on: whether
	// mounts go from it to its peers, and whether they come to it from a master.
	Shared, Slave bool
	// Proc tells that Source is on a proc filesystem.
	Proc bool
}

// Volume is a directory of the host that stands for a VOLUME of the image.
type Volume struct {
	ContainerPath, Source string
}

// Device is a device node of the host and what the container calls it.
type Device struct {
	// HostPath is what is bound where no device node can be made: in a user namespace.
	HostPath      string
	ContainerPath string
	// Type is "c", "b" or "p".
	Type         string
	Major, Minor int64
	// Mode holds the permission bits.
	Mode     os.FileMode
	UID, GID uint32
	// Permissions is what the device cgroup lets through: one to three of "rwm".
	Permissions string
}
