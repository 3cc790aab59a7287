# Boots a host of a lab, and is its hardware as long as it runs. Arguments: its name, the lab's cgroup, and the folder that it sees as /packages.
set -eu
# One of its own: systemd-nspawn makes cgroups beside itself, with names that do not differ from host to host.
echo 0 > "/sys/fs/cgroup$2/$1/cgroup.procs"
exec systemd-nspawn --quiet --register=no --keep-unit --boot --console=pipe --machine="$1" --hostname="$1" \
    --directory="/run/lab/$1/root" --network-namespace-path="/run/netns/$1" --bind-ro="$3:/packages" \
    --resolv-conf=off --timezone=off --link-journal=no --rlimit=NOFILE=1024:524288
