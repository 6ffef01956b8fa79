// Package systemd has the host's service manager make and stop scopes, which are cgroups of processes
// that somebody else has started (systemd.scope(5)). It starts no process and touches no cgroup.
//
// It speaks D-Bus (org.freedesktop.systemd1(5)) over the system's bus, or over systemd's own socket where
// there is no bus. Each call has a connection of its own: one that stays would be woken by
// every unit of the host.
package systemd
