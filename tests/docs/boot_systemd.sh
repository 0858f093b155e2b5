#!/bin/sh
# boot_systemd.sh ROOT: boot the systemd of a Debian root as process 1 of new namespaces, until it exits.
#
# It has no network but its own loopback, control groups of its own, and cannot write this machine's /proc/sys or /sys.
set -eu
root=$1
if [ -z "${INSIDE:-}" ]; then
    exec unshare --mount --propagation private env INSIDE=group "$0" "$root"
fi
if [ "$INSIDE" = group ]; then
    groups=$(mktemp -d)
    mount -t cgroup2 none "$groups"
    mkdir -p "$groups/ptexport-test"
    echo $$ >"$groups/ptexport-test/cgroup.procs"
    export INSIDE=all
    ended=0
    timeout --kill-after=5 170 \
        unshare --cgroup --pid --fork --net --uts --ipc --mount --propagation private --kill-child "$0" "$root" || ended=$?
    echo $$ >"$groups/cgroup.procs"
    # Its last processes may take a moment to end.
    for _ in $(seq 100); do
        find "$groups/ptexport-test" -depth -type d -exec rmdir {} + 2>/dev/null && break
        sleep 0.1
    done
    umount "$groups"
    rmdir "$groups"
    exit $ended
fi
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs tmpfs dev
for name in null zero full random urandom tty; do cp -a "/dev/$name" "dev/$name"; done
ln -s /proc/self/fd dev/fd
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p .old
pivot_root . .old
umount -l /.old
rmdir /.old
mount --make-rshared / # as systemd does on a machine: the files of LoadCredential= are mounted through it
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=trial.target
