// Package spec makes the OCI spec of a pod or a container: the same input gives the same spec. It is a
// flat list of pure steps that use no clock, no file and no network.
//
// It looks nothing up: what a step must know about the machine is in Host; paths, users, profiles and
// devices of a request are read by the caller and are in Pod and Container. It starts nothing and
// keeps nothing. The only thing that it takes from its own process is the architecture, through the
// default seccomp profile.
//
// # Use
//
//	ValidatePod(config, host)                 before anything is done for a pod
//	PodSeccompPath(config)                    which profile file the caller has to read
//	ForPod(host, pod)                         the pause process
//
//	ValidateContainer(podConfig, config, host)
//	ContainerSeccompPath(config)
//	users.Resolve(image.Config.User, securityContext, passwd, group)
//	ImageVolumes(image, config)               which anonymous directories the caller has to make
//	ForContainer(host, pod, container)
//
//	NewExec(containerSpec).Process(cmd, tty)  the process of an exec, as confined as the container
//	Update(host, containerSpec, resources)    UpdateContainerResources
//	signals.Stop(config, image)               CRI, then image, then SIGTERM
//
// ForPod and ForContainer check their request again, so that a spec is never made from a request that
// was not checked. An error has a class: ErrInvalidArgument names the field of the request,
// ErrFailedPrecondition names what this machine lacks.
//
// A check.Note is something that was asked for and could not be done as asked: a value that was
// clamped, a limit that this machine cannot enforce. The caller logs one line for each.
//
// # What is promised about every spec
//
//   - Of the request's annotations and of the image's labels nothing reaches the OCI annotations: OCI
//     runtimes and systemd act on some of them.
//   - Inheritable and ambient capabilities are empty, except those that add_ambient_capabilities
//     names.
//   - The primary group is among the additional groups.
//   - The oom score adjustment and RLIMIT_NOFILE are explicit, never inherited.
//   - Access to devices is denied unless the device is listed.
//   - No value is shared between two specs, nor with the input.
package spec
