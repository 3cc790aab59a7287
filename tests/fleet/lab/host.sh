# Makes a host of a lab: its disk, with nothing on it yet but its name, above the root that all share; and its network, by a cable to the bridge.
# Arguments: its name, its address, that root, the size of its disk, and the lines of /etc/hosts.
set -eu
disk=/run/lab/$1
mkdir "$disk"
mount -t tmpfs -o "mode=755,size=$4" none "$disk"
mkdir -p "$disk/upper/etc" "$disk/work" "$disk/root"
echo "$1" > "$disk/upper/etc/hostname"
printf '127.0.0.1 localhost\n%s' "$5" > "$disk/upper/etc/hosts"
mount -t overlay overlay -o "lowerdir=$3,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"

ip netns add "$1"
ip link add "$1" type veth peer name eth0 netns "$1"
ip link set "$1" master bridge up
ip -n "$1" link set lo up
ip -n "$1" address add "$2/24" dev eth0
ip -n "$1" link set eth0 up

mkdir "/sys/fs/cgroup$6/$1"
