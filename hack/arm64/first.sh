#!/bin/busybox sh
# shellcheck shell=dash
# The first program of the machine of arm64: finds the disk, and hands over to story.sh there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
modprobe virtio_pci
modprobe virtio_blk
until [ -b /dev/vda ]; do sleep 0.1; done
mount /dev/vda /disk
mount --move /dev /disk/dev
mount --move /proc /disk/proc
mount --move /sys /disk/sys
exec switch_root /disk /usr/local/bin/story
