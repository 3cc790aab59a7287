# What `overlord deploy` does on a host, as root. It gets here by standard input, with a line before it that sets `wait_s`, and goes on to read its
# orders there, and the package. It tells what it finds and does in lines that begin with `overlord-deploy`; who reads them believes none.
#
# It leaves a host as it was, or with the whole package: what was installed is put back if the new package does not come up, and what was not there before is
# removed. Whoever hangs up half-way stops nothing that has begun.

set -u
umask 077
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
PATH=$PATH:/usr/sbin:/sbin
package=overlord-minion
config=/etc/minion/minion.toml
certs=/etc/minion/certs
state=/var/lib/minion
# Of each file and log that is told.
told_bytes=16384
told_lines=20
# Halves of a second that the units may take to come up, at most.
start_halves=60
# And for how long they must have run then.
steady_halves=6
if [ "$start_halves" -gt $((2 * wait_s)) ]; then start_halves=$((2 * wait_s)); fi

say() { printf 'overlord-deploy %s\n' "$*"; }

# Tells what is in a file, each line after a word.
tell() { { head -c "$told_bytes" "$2"; echo; } 2>/dev/null | sed "s/^/overlord-deploy $1 /"; }

# Ends it: with the end of the log, and of what kind the failure is.
fail() {
    if [ -s "${log:-}" ]; then tail -n "$told_lines" "$log" >"$log.end" && tell log "$log.end"; fi
    say "failed $1"
    exit 1
}

manager_here() {
    if [ -s /var/lib/dpkg/status ] && command -v dpkg-query >/dev/null; then echo deb
    elif command -v rpm >/dev/null; then echo rpm
    else echo none; fi
}

# How the package stands, in dpkg's words, and its version; nothing if it was never here.
standing() {
    case $manager in
    deb) dpkg-query -W -f '${db:Status-Status} ${Version}' "$package" 2>/dev/null ;;
    rpm) rpm -q "$package" >/dev/null 2>&1 && rpm -q --qf 'installed %{VERSION}-%{RELEASE}\n' "$package" 2>/dev/null | tail -n 1 ;;
    esac
}

architecture() {
    case $manager in
    deb) dpkg --print-architecture ;;
    rpm) rpm --eval '%{_arch}' ;;
    esac
}

# The name that the configuration says; nothing if it says none.
configured_name() {
    sed -n '/^[[:space:]]*\[/q; s/^[[:space:]]*name[[:space:]]*=[[:space:]]*["'"'"']\([^"'"'"']*\)["'"'"'].*$/\1/p' "$config" 2>/dev/null | head -n 1
}

is_up() { systemctl is-active --quiet minion-spawner.service && systemctl is-active --quiet minion.service; }

tell_facts() {
    say "manager $manager"
    say "arch $(architecture)"
    say "standing $before"
    if [ -d /run/systemd/system ]; then say "systemd yes"; fi
    say "hostname $(uname -n)"
    say "name $(configured_name)"
    for folder in /var/tmp /usr; do say "df $folder $(df -Pk "$folder" | tail -n 1)"; done
    if [ -f "$kept" ]; then say "kept $(sha256sum <"$kept" | cut -c 1-64)"; fi
    if [ -f "$certs/key.pem" ]; then say "key yes"; fi
    if [ -f "$certs/ca.pem" ]; then tell ca "$certs/ca.pem"; fi
    if [ -f "$certs/cert.pem" ]; then tell cert "$certs/cert.pem"; fi
    say ready
}

# Three lines, and a fourth so that none is taken for whole that was cut.
read_orders() {
    IFS=' ' read -r with size sum || fail cut
    IFS=' ' read -r _ name || fail cut
    IFS=' ' read -r enrolment authority pin token || fail cut
    IFS=' ' read -r end && [ "$end" = end ] || fail cut
}

take_package() {
    say phase copying
    file=$work/$package.$manager
    cat >"$file" 2>>"$log" || fail copy
    [ "$(wc -c <"$file")" -eq "$size" ] || fail cut
    got=$(sha256sum <"$file")
    [ "${got%% *}" = "$sum" ] || fail sum
}

# apt-get waits for whoever holds dpkg's lock, and unpacks nothing whose dependencies are not there. rpm alone does so, too, and asks no mirror. What the
# package is was checked by its digest, which came by ssh.
install_file() {
    case $manager in
    deb)
        if command -v apt-get >/dev/null; then
            apt-get -q -o DPkg::Lock::Timeout="$wait_s" -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
                install -y --no-install-recommends --allow-downgrades --reinstall "$1"
        else
            dpkg --force-confdef --force-confold -i "$1"
        fi
        ;;
    rpm) rpm -U --oldpackage --replacepkgs --nosignature "$1" ;;
    esac </dev/null >>"$log" 2>&1 9>&-
}

# What is there of a package that was not there before goes, and of its files only what it has made itself.
remove_package() {
    case $manager in
    deb)
        if [ "$is_new" = yes ]; then verb=--purge; else verb=--remove; fi
        dpkg --force-remove-reinstreq "$verb" "$package"
        ;;
    rpm)
        rpm -e "$package"
        if [ "$is_new" = yes ]; then rm -rf /etc/minion "$state"; fi
        ;;
    esac </dev/null >/dev/null 2>&1 9>&-
}

# The version of the package that was kept.
kept_version() {
    case $manager in
    deb) dpkg-deb -f "$kept" Version ;;
    rpm) rpm -qp --nosignature --qf '%{VERSION}-%{RELEASE}' "$kept" ;;
    esac 2>/dev/null
}

# The way back, before anything is changed. There may be none: rpm makes no package of what is installed.
keep_former() {
    former=$work/former.$manager
    case $before in installed*) ;; *) return ;; esac
    if [ "installed $(kept_version)" = "$before" ]; then cp "$kept" "$former" || rm -f "$former"
    elif [ "$manager" = deb ]; then minion repack "$former" || rm -f "$former"
    fi >/dev/null 2>&1
}

# As it was before, as far as that can be. What is written meanwhile is not why it failed.
put_back() {
    why=$log log=$work/back
    case $before in
    installed*)
        if [ "$(standing)" = "$before" ] && [ "${1:-}" != anyway ]; then say "back former"
        elif [ -f "$former" ] && install_file "$former" && [ "$(standing)" = "$before" ]; then say "back former"
        else say "back none"; fi
        ;;
    '' | not-installed* | config-files*)
        remove_package
        case $(standing) in '' | not-installed* | config-files*) say "back removed" ;; *) say "back none" ;; esac
        ;;
    # It was there by half before, and may serve all the same.
    *) say "back none" ;;
    esac
    log=$why
}

install_package() {
    say phase installing
    keep_former
    if ! install_file "$file"; then
        put_back
        fail install
    fi
    if ! minion --version >>"$log" 2>&1; then
        put_back anyway
        fail program
    fi
}

# The processes of both units, if both are up, and run the program that is installed now.
processes() {
    is_up || return
    for unit in minion-spawner minion; do
        pid=$(systemctl show --property MainPID $unit.service) && pid=${pid#*=} || return
        case $(readlink "/proc/$pid/exe") in '' | *' (deleted)') return 1 ;; esac
        echo "$pid"
    done
}

# A package that ends a moment after it has begun is not up.
wait_until_up() {
    halves=0 steady=0 last=
    while [ "$steady" -lt "$steady_halves" ]; do
        now=$(processes) || now=
        if [ -n "$now" ] && [ "$now" = "$last" ]; then steady=$((steady + 1)); else steady=0; fi
        last=$now halves=$((halves + 1))
        [ "$halves" -le "$start_halves" ] || [ "$steady" -gt 0 ] || return 1
        sleep 0.5
    done
}

start_units() {
    say phase starting
    if ! is_up; then systemctl enable --now minion-spawner.service minion.service >>"$log" 2>&1 9>&-; fi
    wait_until_up && return
    journalctl -q --no-pager -o cat -n 3 -u minion.service -u minion-spawner.service >>"$log" 2>&1
    if [ "$with" = package ]; then put_back anyway; fi
    fail start
}

# Before all else in the file, so that it stands in no table.
set_name() {
    {
        fresh=$(mktemp "$config.XXXXXXXXXX") && cp -p "$config" "$fresh" && { printf 'name = "%s"\n' "$name" && cat "$config"; } >"$fresh" \
            && sync "$fresh" && mv "$fresh" "$config"
    } 2>>"$log" || fail name
    systemctl restart minion-spawner.service minion.service >>"$log" 2>&1 9>&- && wait_until_up || fail start
}

# The token stands in no argument: other users can read those.
enrol() {
    say phase enrolling
    printf '%s\n' "$token" | minion enroll --overlord "$authority" --ca-fingerprint "$pin" --token - >"$log" 2>&1 || fail enrol
}

# Whoever does not read what is said any more stops nothing.
trap : PIPE
manager=$(manager_here)
# Where minion.upgrade keeps it, too.
kept=$state/spool/packages/installed
# What minion.upgrade locks, too.
command exec 9>>/run/overlord-minion.lock || fail lock
if ! flock -n 9; then
    say waits
    flock -w "$wait_s" 9 || fail busy
fi
is_new=yes
if [ -e /etc/minion ] || [ -e "$state" ]; then is_new=no; fi
before=$(standing)
tell_facts
read_orders
work=$(mktemp -d /var/tmp/overlord-deploy.XXXXXXXXXX) || fail copy
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
log=$work/log
if [ "$with" = package ]; then
    take_package
    install_package
fi
start_units
if [ -n "$name" ]; then set_name; fi
if [ "$enrolment" = enrol ]; then enrol; fi
# The next one, or minion.upgrade, puts this back where it does not come up itself. Without room it is not kept.
if [ "$with" = package ]; then
    if [ -d "$state/spool" ]; then mkdir -p "${kept%/*}"; fi
    { rm -f "$kept.draft" && cp "$file" "$kept.draft" && sync "$kept.draft" && mv "$kept.draft" "$kept"; } 2>/dev/null || rm -f "$kept" "$kept.draft"
fi
say done
