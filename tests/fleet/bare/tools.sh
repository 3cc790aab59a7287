#!/bin/sh
# In the place of a host's programs: by their names, as much as a test needs.
host=@HOST@
version() { grep -a '^Version: ' "$1" | cut -d ' ' -f 2; }
is_up() { [ -f $host/pid ] && kill -0 "$(cat $host/pid)" 2>/dev/null && [ "installed $(cat $host/never-up 2>/dev/null)" != "$(cat $host/standing)" ]; }
stop() { if [ -f $host/pid ]; then kill -- "-$(cat $host/pid)" 2>/dev/null; rm $host/pid; fi; }
# As systemd with Restart=always.
start() {
    stop
    setsid sh -c 'while :; do minion --config /etc/minion/minion.toml serve; sleep 0.1; done' </dev/null >>$host/serve.log 2>&1 &
    echo $! >$host/pid
}

case ${0##*/} in
apt-get)
    for file; do :; done
    echo "$file" >>$host/apt.log
    if [ -p $host/apt-waits ]; then read -r _ <$host/apt-waits; fi
    if [ "$(version "$file")" = "$(cat $host/apt-fails 2>/dev/null)" ]; then
        echo "half-configured $(version "$file")" >$host/standing
        echo "Setting up overlord-minion ($(version "$file")) ..."
        printf 'the script of the package \033[2J says no\n'
        echo 'dpkg: error processing package overlord-minion (--configure):'
        echo ' installed overlord-minion package post-installation script subprocess returned error exit status 1'
        echo 'E: Sub-process /usr/bin/dpkg returned an error code (1)'
        exit 100
    fi
    echo "installed $(version "$file")" >$host/standing
    mkdir -p /etc/minion/acl.d /var/lib/minion/spool
    chmod 755 /etc/minion /etc/minion/acl.d /var/lib/minion
    if [ ! -f /etc/minion/minion.toml ]; then install -m 644 $host/minion.toml /etc/minion/minion.toml; fi
    install -m 644 $host/admin.toml /etc/minion/acl.d/50-admin.toml
    cp $host/fake/minion-of-package $host/fake/minion
    start
    ;;
df) if [ -f $host/df ]; then cat $host/df; else PATH=${PATH#*:} exec df "$@"; fi ;;
dpkg)
    echo "$*" >>$host/dpkg.log
    case $* in
    --print-architecture) cat $host/arch ;;
    *--purge*) stop; rm -rf $host/standing $host/fake/minion /etc/minion /var/lib/minion ;;
    *--remove*) stop; echo "config-files 0" >$host/standing; rm -f $host/fake/minion ;;
    esac
    ;;
dpkg-deb) version "$2" ;;
dpkg-query) cat $host/standing 2>/dev/null ;;
journalctl) echo 'minion: it has a reason of its own' ;;
minion | minion-of-package) echo "$*" >>$host/minion.log; exec @MINION@ "$@" ;;
systemctl)
    case $1 in
    is-active) is_up ;;
    show) echo "MainPID=$(cat $host/pid)" ;;
    enable | restart) start ;;
    esac
    ;;
esac
