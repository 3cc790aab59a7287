# A removal stops the authority. An upgrade stops nothing: see %post.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable overlord-certs.service >/dev/null 2>&1 || :
    if [ -d /run/systemd/system ]; then
        systemctl stop overlord-certs.service || :
    fi
fi
exit 0
