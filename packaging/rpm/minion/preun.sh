# A removal stops both services; jobs that run go on to their end, and their results are kept. An upgrade stops nothing: see %post.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable minion.service minion-spawner.service >/dev/null 2>&1 || :
    if [ -d /run/systemd/system ]; then
        systemctl stop minion.service minion-spawner.service || :
    fi
fi
exit 0
