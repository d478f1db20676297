#!/bin/sh
# Boot the system in TREE: its systemd is PID 1 of new namespaces, with control groups of its own and
# no network but loopback. Ends when that systemd does. As root.
#
#   boot.sh TREE GROUP        GROUP names the control groups, which the caller removes
set -eu
tree=$1
group=$2

# Each hierarchy of this machine: one with version 2, several with version 1.
hierarchies=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $3, $2, $4 }' /proc/mounts)
echo "$hierarchies" | while read -r _ place _; do
    mkdir -p "$place/$group"
    for file in cpuset.cpus cpuset.mems; do # those of version 1 begin empty
        [ ! -e "$place/$group/$file" ] || [ -n "$(cat "$place/$group/$file")" ] ||
            cat "$place/$file" >"$place/$group/$file"
    done
    echo $$ >"$place/$group/cgroup.procs"
done

export tree hierarchies
exec unshare --pid --mount --uts --ipc --cgroup --net --fork --kill-child sh -euc '
    mount --make-rprivate /
    mount --bind "$tree" "$tree"
    cd "$tree"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t tmpfs -o mode=755 tmpfs dev
    for name in null zero full random urandom tty; do
        touch dev/$name
        mount --bind /dev/$name dev/$name
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs tmpfs dev/shm
    ln -s /proc/self/fd dev/fd
    for number in 0 1 2; do
        ln -s /proc/self/fd/$number dev/$(echo stdin stdout stderr | cut -d " " -f $((number + 1)))
    done
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs tmpfs tmp
    case $hierarchies in
    "cgroup2 /sys/fs/cgroup "*) ;;
    *) mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup ;;
    esac
    echo "$hierarchies" | while read -r kind place options; do
        mkdir -p ".$place"
        # Of the options those that name the hierarchy.
        options=$(echo "$options" | sed -E "s/(^|,)(rw|ro|relatime|nosuid|nodev|noexec|nsdelegate|memory_recursiveprot)\b//g; s/^,//")
        case $options in name=*) options=none,$options ;; esac
        mount -t "$kind" ${options:+-o "$options"} "$kind" ".$place"
    done
    hostname "$(cat etc/hostname)"
    ip link set lo up
    mkdir -p before
    pivot_root . before
    umount -l /before
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --log-target=console </dev/null
'
