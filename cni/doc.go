// Package cni connects network namespaces to a network and disconnects them again.
//
// It does not decide which pod gets a network, retry on its own, or keep a record of pods. It
// stores only debts: an ADD that was begun and has no successful DEL yet, with everything that this
// DEL needs. It knows nothing about containers.
//
// # Networks
//
// The configuration folder decides, as everywhere: the first valid .conf, .conflist or .json file,
// in lexical order, is the network. Every call checks the folder for changes, so it may be removed,
// recreated and rewritten at any time. If the current network's file can no longer be parsed, the
// network stays, because somebody is writing the file.
//
// The default network exists only if the folder has no network and Config.Default is set, or if a
// file has the plugin type "cribox". Its names contain the instance, so that two daemons never
// affect each other:
//
//	bridge            cbr<instance>
//	network name      cribox-<instance>
//	leases            <state>/cni/leases
//	nftables          table "inet cribox_<instance>": one rule masquerades the whole subnet, and
//	                  each port of the host that leads to a pod has one, with the pod's id
//	subnet            the pod CIDR, else the configured one, else 10.83.0.0/16; if "pod-cidr" is
//	                  configured, there is no network until the kubelet has set the pod CIDR
//
// Its configuration is that of the standard plugins bridge and host-local (and portmap for pods with
// host ports, bandwidth for pods that request it). But only bandwidth is a program: for the others
// this process talks to the kernel (builtin.go), with the packages bridge, lease and nat. Where the
// kernel has no nftables, the plugins do the work, and masquerade by iptables, with a rule per pod.
// They also undo what earlier versions of cribox have made with them. The MTU is that of the default
// route's link if that is below 1500.
//
// The subnet may be a comma separated pair, one per family. It is refused if it overlaps a route
// that is not ours; this is checked only until the bridge is up, so that a route added later does
// not disconnect pods. The subnet changes only while no pod is attached.
//
// # Debts
//
// Before an ADD its record is written. For the default network that is a file <root>/cni/<pod id>,
// not synced, because its leases do not outlive the state folder. Any other plugin may keep a lease
// through a reboot, so the same record is appended as one line to <root>/cni.debts, with one fsync
// for all pods that write at the same time:
//
//	+<pod id> <record as JSON>
//
// The plus becomes a minus when the debt is cleared: one byte in place, which works on a full disk.
//
// # Plugins
//
// Every plugin runs in a process group of its own, with a fixed environment and a deadline. At the
// deadline the group is killed, and every other process that has this call's mark in its
// environment. The pod's lock file is descriptor 3. Processes that a plugin starts inherit it
// unless a program on the way closes it. Go's os/exec and shells pass on descriptors that are not
// close-on-exec, so bridge, host-local and nft have it; a program that closes all descriptors, or
// uses descriptor 3 for a file of its own, does not pass it on.
//
// With a configuration of CNI 1.1.0 or later the plugins are asked for their STATUS, in the
// background, when a caller wants the network's status and the last answer is old. Ready reports
// their errors. After a start they get the list of attachments in use (GC), if that list is certain
// to be complete: see CollectGarbage. CHECK is never called, because there is no useful reaction to
// a running pod whose CHECK fails.
//
// # Steps
//
// cni.netns.created, cni.debt.written, cni.add, cni.added, cni.del, cni.deleted, cni.debt.cleared,
// cni.gc, netns.removed. In the default network, within cni.add and cni.added: cni.lease.taken,
// cni.bridge.ready, cni.link.made, cni.link.configured, cni.ports.opened; within cni.del and
// cni.deleted: cni.ports.closed, cni.link.removed, cni.lease.released.
package cni
