# overlord-certs.service is for the machine that has the fleet's authority, so it is enabled by hand. Where it runs, it is restarted once the files
# have been replaced; nothing stops it before. Commands and the dispatchers of jobs that run go on.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if systemctl --quiet is-active overlord-certs.service; then
        systemctl restart overlord-certs.service ||
            echo 'overlord: the authority did not start; systemctl status overlord-certs says why' >&2
    fi
fi
exit 0
