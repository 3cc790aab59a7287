# Installs, upgrades and downgrades alike. No script of this package stops a service before its files are replaced; here, when they have been,
# those that are enabled or run are restarted, which touches no job. The preset beside this enables both; a site's own presets go before it.
systemd-sysusers minion.conf || :
systemd-tmpfiles --create minion.conf || :
if [ "$1" -eq 1 ]; then
    systemctl --no-reload preset minion-spawner.service minion.service >/dev/null 2>&1 || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    for unit in minion-spawner.service minion.service; do
        if systemctl --quiet is-enabled $unit || systemctl --quiet is-active $unit; then
            systemctl restart $unit || echo "overlord-minion: $unit did not start; systemctl status $unit says why" >&2
        fi
    done
fi
exit 0
