#!/usr/bin/env bash
# Boots the image of image.sh on a throw-away disk, and returns when one can log in. KVM=1 uses the
# processor's own virtualization; without it everything is emulated, and about ten times slower.
# LINK=NAME gives the machine a second network card, eth1; its other end is the link NAME here.
set -euo pipefail
# shellcheck source=hack/vm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# tsc=reliable: without it the guest reads its time from an emulated chip, and all is several times slower.
# no_timer_check: without it a kernel that gets no processor for a moment panics, "IO-APIC + timer doesn't work".
kernel_line="root=/dev/vda rw console=ttyS0 tsc=reliable no_timer_check mitigations=off no5lvl nowatchdog net.ifnames=0"
case $lsm in
selinux) kernel_line+=" security=selinux selinux=1 audit=1" ;;
*) kernel_line+=" audit=0" ;;
esac

accelerator() {
	if [ "${KVM:-}" = 1 ]; then
		[ -w /dev/kvm ] || die "KVM=1, and /dev/kvm cannot be used here"
		printf '%s\n' -accel kvm -cpu host
	else
		# cx16=off: where a newer kernel uses that instruction, the emulation of it spoils the flags, and the kernel panics.
		printf '%s\n' -accel tcg,thread=multi -cpu "max,la57=off${kernel:+,cx16=off}"
	fi
}

free_port() {
	local port
	for port in $(shuf -i 20000-29999 -n 20); do
		[ -n "$(ss -Hltn "sport = :$port")" ] || { echo "$port" && return; }
	done
	die "twenty ports were tried, and all are in use"
}

# start runs qemu on its own: up.sh ends, and the machine stays until down.sh.
start() {
	local port=$1 accel link=()
	[ -z "${LINK:-}" ] || link=(-netdev "tap,id=link,ifname=$LINK,script=no,downscript=no" -device "virtio-net-pci,netdev=link")
	mapfile -t accel < <(accelerator)
	quietly qemu-img create -q -f qcow2 -F raw -b "$image/disk.img" "$run/disk.qcow2"
	setsid nice -n 10 "$qemu" "${accel[@]}" -smp 2 -m 3072 -nodefaults -display none -serial "file:$run/console.log" \
		-kernel "$image/vmlinuz" -initrd "$image/initrd" -append "$kernel_line" \
		-drive "file=$run/disk.qcow2,if=virtio,format=qcow2,cache=unsafe" -device virtio-rng-pci \
		-netdev "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22" -device virtio-net-pci,netdev=net "${link[@]}" \
		-pidfile "$run/pid" </dev/null >"$run/qemu.log" 2>&1 9>&- &
	echo "$port" >"$run/port"
}

panicked() { grep -q 'Kernel panic' "$run/console.log"; }

# wait_for_login gives it MAX seconds, and less when qemu has ended. It returns 1 after a panic.
wait_for_login() {
	local end=$(($(now_ms) + $1 * 1000))
	within 20 vm_pid || { cat "$run/qemu.log" >&2 && die "qemu did not start"; }
	until (vm true) >/dev/null 2>&1; do
		! panicked || { show_log "$run/console.log" && return 1; }
		vm_pid >/dev/null || { show_log "$run/console.log" && die "the machine is off: $(cat "$run/qemu.log")"; }
		[ "$(now_ms)" -lt "$end" ] || { show_log "$run/console.log" && die "no login after $1 s"; }
		sleep 1
	done
}

[ -e "$image/disk.img" ] || die "there is no image: make vm"
if vm_pid >/dev/null; then die "a machine runs already: hack/vm/ssh.sh, or hack/vm/down.sh"; fi
up=no
trap '[ $up = yes ] || "$top/hack/vm/down.sh"' EXIT
boot() {
	rm -rf "$run"
	mkdir -p "$run"
	start "$(free_port)"
	wait_for_login 600
}

# With two emulated processors, one may execute what the other is just patching: a kernel that does so as
# it boots panics, once in some dozens of boots.
boot_again() {
	panicked || return 1
	note "the kernel of the machine panics; once again"
	"$top/hack/vm/down.sh"
	boot || die "the kernel of the machine panics again"
}

timed "booting a Debian 12" boot || boot_again
up=yes
