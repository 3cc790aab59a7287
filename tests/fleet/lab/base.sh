# Finishes the root of a lab's hosts, which is the folder where it runs. No host starts an sshd, or looks for updates, unless a test has it do so; and
# each gets a name and an id of its own.
set -eu
systemctl --quiet --root="$PWD" disable ssh.service
systemctl --quiet --root="$PWD" mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
rm -f etc/hostname var/cache/apt/archives/*.deb
: > etc/machine-id
