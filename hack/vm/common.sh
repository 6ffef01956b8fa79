# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it: where the machine's files are, and how one gets into it.

# shellcheck source=hack/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=hack/process.sh
. "$top/hack/process.sh"

kernel=${KERNEL:-}                   # backports, or Debian's own
lsm=${LSM:-}                         # selinux, or AppArmor
image=$bin/vm${kernel:+-$kernel}${lsm:+-$lsm} # what image.sh makes
run=${VM_RUN:-$bin/vm-run}           # of the machine that runs: pid, port, disk, console
qemu=/usr/bin/qemu-system-x86_64

ssh_options() {
	printf '%s\n' -q -i "$image/key" -o UserKnownHostsFile="$image/known_hosts" -o HostKeyAlias=cribox-vm \
		-o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 \
		-o ServerAliveCountMax=8 -o ControlPath="$run/ssh" -p "$(cat "$run/port")"
}

# vm COMMAND runs a shell command in the machine, as root. All commands share one connection, which
# the first one makes: a key exchange takes seconds there. It ends with the machine.
vm() {
	local options
	mapfile -t options < <(ssh_options)
	[ -S "$run/ssh" ] || ssh "${options[@]}" -M -N -f root@127.0.0.1 </dev/null >/dev/null 2>&1 || true
	ssh "${options[@]}" root@127.0.0.1 "$@"
}

vm_pid() { pid_of "$run/pid" "$qemu"; }
