# The first process of a lab: makes its ground, says "ready", and holds it until nobody holds its stdin any more. Then it ends all that runs here and
# removes the one thing that would be left behind, the cgroups; the kernel takes the rest down.
# Arguments: the cgroup in which the lab may make its own, and the name of that one.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"

# Cgroups as a Debian host has them, one hierarchy of version 2, whatever the machine has.
mount -t cgroup2 none /sys/fs/cgroup
cd "/sys/fs/cgroup$1"

remove() {
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
}

# What a lab has left whose holder was killed. This is the machine's /proc still.
for left in overlord-lab-*; do
    test ! -d "$left" || { pid=${left#overlord-lab-}; test -e "/proc/${pid%-*}" || remove "$left" || true; }
done
mkdir "$2"

mount -t proc none /proc
mount -t tmpfs -o mode=755 none /run
mkdir /run/netns /run/lab
ip link set lo up
ip link add bridge type bridge
ip address add 10.77.0.1/24 dev bridge
ip link set bridge up
echo ready

set +e
while read -r _; do :; done
kill -9 -1 2>/dev/null
tries=0
until remove "$2" || test $tries -eq 100; do
    tries=$((tries + 1))
    sleep 0.05
done
