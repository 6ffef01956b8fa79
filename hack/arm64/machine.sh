# shellcheck shell=dash
# Sourced by what runs on the machine of arm64: makes what an init system makes, and says on the console how each
# step ended and how long it took. A line "the story has ended: ..." says how all of it did.

/bin/busybox --install -s /bin
export PATH=/usr/local/bin:/bin

# version is that of the cgroups, 1 or 2, from the kernel's command line.
version=$(sed -n 's/.*cgroups=\([12]\).*/\1/p' /proc/cmdline)

# now prints the time since boot in hundredths of a second.
now() { sed 's/\([0-9]*\)\.\([0-9]*\) .*/\1\2/' /proc/uptime; }

# took START prints the seconds since then.
took() {
	local d=$(($(now) - $1))
	printf '%d.%02d s' $((d / 100)) $((d % 100))
}

finish() {
	printf 'the story has ended: %s\n' "$1"
	sync
	poweroff -f
}

# step TEXT COMMAND... runs the command, which may say more in found; one that fails ends the story.
step() {
	local text=$1 start
	shift
	start=$(now) found=
	if "$@" >/var/log/step 2>&1; then
		printf 'step | %s | pass%s | %s\n' "$text" "$found" "$(took "$start")"
	else
		printf 'step | %s | fail%s | %s\n' "$text" "$found" "$(took "$start")"
		cat /var/log/step
		tail -n 60 /var/log/cribox.log /run/cribox/shim.log /run/cribox/logger.log
		dmesg | tail -n 20
		finish failed
	fi
}

# within SECONDS COMMAND... repeats the command until it succeeds.
within() {
	local end=$(($(now) + $1 * 100))
	shift
	until "$@"; do
		[ "$(now)" -lt "$end" ] || return 1
		sleep 0.2
	done
}

# cgroups mounts them as the version has them.
cgroups() {
	local c
	if [ "$version" = 2 ]; then
		mount -t cgroup2 cgroup /sys/fs/cgroup
		return
	fi
	mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
	for c in $(sed -n 's/\t.*\t1$//p' /proc/cgroups); do
		mkdir "/sys/fs/cgroup/$c"
		mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
	done
}

# machine makes what an init system makes.
machine() {
	local d
	for d in run tmp; do mount -t tmpfs tmpfs "/$d"; done
	mkdir -p /dev/pts /dev/shm /dev/mqueue /run/cribox
	mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
	mount -t tmpfs shm /dev/shm
	mount -t mqueue mqueue /dev/mqueue
	mount --make-rshared /
	cgroups || return
	ip link set lo up
	hostname node
	modprobe overlay
	echo 1 >/proc/sys/net/ipv4/ip_forward
}
