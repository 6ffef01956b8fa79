// Package cni connects network namespaces to a network and disconnects them again.
//
// It will not decide which pod wants a network, retry on its own, or keep a record of pods: it
// remembers only what it still owes, an ADD that was begun and has no successful DEL yet (Debts),
// together with everything that DEL needs. It has never heard of containers.
//
// # Networks
//
// The configuration folder decides, as everywhere: the lexically first valid .conf, .conflist or
// .json file is the network. The folder is compared on every call, so it may be removed, recreated
// and rewritten at will. A file that was the network and no longer parses keeps the network it was,
// because somebody is writing it.
//
// The default network exists only when the folder names no network and Config.Default is set, or
// where a file names the plugin type "cribox". It consists of the standard plugins bridge and
// host-local (and portmap for pods with host ports, bandwidth for pods that ask for it), named
// after the instance, so that two daemons never touch each other:
//
//	bridge            cbr<instance>
//	network name      cribox-<instance>
//	leases            <state>/cni/leases
//	masquerading      one rule for the whole subnet, nftables table "inet cribox_<instance>";
//	                  without a usable nft the bridge plugin's own ipMasq, a rule per pod
//	IPv6 gateway      an address of the bridge, added before the first pod, without the kernel's search for duplicates
//	subnet            the pod CIDR, else the configured one, else 10.83.0.0/16; configured as
//	                  "pod-cidr" there is no network before the kubelet has named it
//
// A pod without host ports and bandwidth costs bridge and host-local, once for ADD and once for
// DEL, and no firewall program. The MTU is that of the default route's link where that is below
// 1500.
//
// The subnet may be a comma separated pair, one per family. It is refused while it overlaps a route
// that is not ours, until the bridge is up: a route that comes later does not take the network from
// its pods. It changes only while no pod is attached.
//
// # Debts
//
// Before an ADD its intent is written. An attachment of the default network is a file
// <root>/cni/<pod id>, not synced: its leases do not outlive the state folder. Any other plugin may
// keep a lease through a reboot, so the same record goes as one line into <root>/cni.debts with one
// fsync, shared by all pods that write at the same time:
//
//	+<pod id> <record as JSON>
//
// The plus becomes a minus when the debt is cleared: one byte in place, which works on a full disk.
//
// # Plugins
//
// Every plugin runs in a process group of its own, with a fixed environment and a deadline. At the
// deadline the group and whatever else carries this call's mark in its environment are killed. The
// pod's lock file is descriptor 3. What a plugin starts inherits it as long as nobody closes it on
// the way: Go's os/exec passes on what came in without close-on-exec, so does a shell (bridge to
// host-local to nft is covered); a program that closes all descriptors or puts its own extra file
// at 3 is not.
//
// With a configuration of CNI 1.1.0 or later plugins are asked for their STATUS, in the background,
// when somebody looks at the network and the last answer is old. Their words are the reason of
// Ready. After a start they are told which attachments are in use (GC), when that is certain: see
// CollectGarbage. CHECK is never called: nobody would know what to do with a pod that runs and
// whose plugin finds fault with it.
//
// Minimum plugin version for hostPort with nftables is 1.9.0, before it forwards foreign traffic
// (CVE-2025-67499).
//
// # Steps
//
// cni.netns.created, cni.debt.written, cni.add, cni.added, cni.del, cni.deleted, cni.debt.cleared,
// cni.gc, netns.removed.
package cni
