#!/bin/busybox sh
# shellcheck shell=dash
# The first program of a test's guest, from its initramfs: loads the disk's drivers, mounts the root disk, and hands
# over to the job that the kernel command line names. What it prints arrives on the serial console.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    /bin/busybox insmod "/modules/$module.ko" || echo "GUEST no $module"
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do
    /bin/busybox sleep 0.1
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 /dev/vda /root || { echo "GUEST root disk cannot be mounted"; /bin/busybox poweroff -f; }
/bin/busybox mount -t proc proc /root/proc
/bin/busybox mount -t sysfs sysfs /root/sys
/bin/busybox mount -t devtmpfs dev /root/dev
exec /bin/busybox chroot /root /bin/busybox sh /job.sh
