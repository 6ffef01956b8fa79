// Package ledger counts what a daemon holds on its host: mounts, network namespaces, links, address leases, firewall
// rules, cgroups, processes, descriptors and files. Taken before and after, two ledgers tell what was left behind.
//
// It looks only at what the kernel and the file system show to anybody. It asks the daemon nothing, changes nothing,
// and does not know what the daemon should hold.
package ledger
