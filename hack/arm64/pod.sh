#!/usr/bin/env bash
# Boots Debian's kernel of arm64 in an emulated machine, once with each version of cgroups, and runs a pod on
# it as story.sh tells. Writes its section of docs/vm-results.md. When it fails, the consoles stay in
# bin/arm64-run.
#
#   pod.sh            with some specs of critest
#   pod.sh -critest   with all specs that can run there
set -euo pipefail
# shellcheck source=hack/arm64/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

title="A pod on arm64"
specs="HostPID|HostNetwork is|PodPID|MaskedPaths|seccomp default|DNS config|port mapping with only|should support attach|\
should support (starting|stopping|removing|creating) container|should support execSync$|should support exec with tty"
[ "${1:-}" != -critest ] || specs=.
most=2400 # seconds for a machine, which takes about 60 alone

# go_arm64 OUT PACKAGE... builds cribox's own programs.
go_arm64() {
	local out=$1
	shift
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION:-}" -o "$out" "$@"
}

programs() {
	(cd "$top" && go_arm64 "$arm/" . ./cribox-helper)
	(cd "$top/crictl-tests" && go_arm64 "$arm/fixture" ./cmd/fixture)
	(cd "$top/crictl-tests/fixture/toolbox" && go_arm64 "$arm/toolbox" ./*.go)
}

# first_files makes the first file system, from which the kernel gets to the disk.
first_files() {
	local tree=$run/first
	mkdir -p "$tree"/{bin,dev,proc,sys,disk}
	cp "$debian/bin/busybox" "$tree/bin/"
	modules "$tree"
	install -m 755 "$top/hack/arm64/first.sh" "$tree/init"
	(cd "$tree" && find . | cpio --quiet -o -H newc) >"$run/initrd"
}

modules() {
	mkdir -p "$1/lib"
	cp -r "$debian/lib/modules" "$1/lib/"
}

# disk makes the machine's disk: programs, settings, and no Debian.
disk() {
	local tree=$run/tree p
	mkdir -p "$tree"/{bin,sbin,dev,proc,sys,tmp,run,root} "$tree"/etc/cribox "$tree"/usr/local/bin "$tree"/opt/cni/bin "$tree"/var/{log,lib}
	cp "$debian/bin/busybox" "$tree/bin/"
	modules "$tree"
	for p in cribox cribox-helper fixture toolbox crictl critest; do cp "$arm/$p" "$tree/usr/local/bin/"; done
	counted_runc "$tree"
	cp "$arm"/cni/* "$tree/opt/cni/bin/"
	install -D -m 644 "$top/hack/arm64/machine.sh" "$tree/usr/local/lib/machine.sh"
	install -m 755 "$top/hack/arm64/story.sh" "$tree/usr/local/bin/story"
	echo "$specs" >"$tree/root/specs"
	ln -s /bin/busybox "$tree/sbin/modprobe" # the kernel itself asks for modules
	settings "$tree/etc"
	quietly mke2fs -q -t ext4 -d "$tree" "$run/disk.img" 2G
}

# counted_runc puts runc on the disk, and in its place a script that notes each start of it.
counted_runc() {
	install -D "$arm/runc" "$1/usr/local/lib/runc"
	printf '#!/bin/sh\necho "$*" >>/run/runc.calls\nexec /usr/local/lib/runc "$@"\n' >"$1/usr/local/bin/runc"
	chmod 755 "$1/usr/local/bin/runc"
}

settings() {
	printf 'root:x:0:0:root:/root:/bin/sh\n' >"$1/passwd"
	printf '127.0.0.1 localhost node\n' >"$1/hosts"
	: >"$1/resolv.conf"
	printf 'runtime-endpoint: unix:///run/cribox/cribox.sock\nimage-endpoint: unix:///run/cribox/cribox.sock\ntimeout: 120\n' >"$1/crictl.yaml"
	printf 'log_level = "debug"\n[network]\ndefault = true\n' >"$1/cribox/config.toml"
}

# machine CGROUPS boots, and returns when the machine is off.
machine() {
	local console=$run/console-v$1.log
	cp --reflink=auto --sparse=always "$run/disk.img" "$run/disk-v$1.img"
	timeout -k 5 "$most" nice -n 10 "$qemu" -M virt -cpu max,pauth-impdef=on -accel tcg,thread=multi -smp 2 -m 2048 -nodefaults -display none \
		-serial "file:$console" -kernel "$(echo "$debian"/boot/vmlinuz-*)" -initrd "$run/initrd" \
		-append "console=ttyAMA0 quiet loglevel=4 mitigations=off nowatchdog audit=0 net.ifnames=0 panic=-1 cgroups=$1" \
		-no-reboot -drive "file=$run/disk-v$1.img,if=none,id=disk,format=raw,cache=unsafe" -device virtio-blk-pci,drive=disk \
		-device virtio-rng-pci </dev/null >"$run/qemu.log" 2>&1 || { show_log "$run/qemu.log" && die "the machine was not off after $most s"; }
	sed -i 's/\r$//' "$console"
	grep -q '^the story has ended: passed' "$console" || { show_log "$console" && die "the pod has failed: $console"; }
}

# results prints the section: what the machine was, and how each step ended with each version of cgroups.
results() {
	cat <<-END
		## $title

		Written by \`make test-arm64-pod\` on $(date -u +%F): Debian's kernel without its programs, cribox, and \`hack/arm64/story.sh\`.
		The processor was emulated, so times are no measure.

		| | | |
		|---|---|---|
	END
	sed -n 's/^fact \(.*\)$/\1 |/p' "$run/console-v2.log"
	printf '\n| step | cgroup v1 | cgroup v2 |\n|---|---|---|\n'
	awk -F ' [|] ' '
		/^step / { if (!($2 in seen)) { seen[$2] = 1; names[++n] = $2 }; how[FILENAME, $2] = $3 ", " $4 }
		END {
			for (i = 1; i <= n; i++) {
				printf "| %s", names[i]
				for (f = 1; f < ARGC; f++) printf " | %s", (ARGV[f], names[i]) in how ? how[ARGV[f], names[i]] : "left out"
				print " |"
			}
		}
	' "$run/console-v1.log" "$run/console-v2.log"
}

"$top/hack/arm64/debian.sh"
"$top/hack/tools.sh" arm64
timed "building cribox for arm64" programs
trap 'rm -rf "$run"/*.img "$run"/{first,tree,initrd}' EXIT
rm -rf "$run"
mkdir -p "$run"
first_files
timed "making its disk" disk
for version in 2 1; do timed "a pod on arm64, cgroup v$version" machine "$version"; done
results | replace_section "$top/docs/vm-results.md" "$title"
