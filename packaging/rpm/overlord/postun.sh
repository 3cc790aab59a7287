# The unit is gone, or another one: systemd reads it again. rpm leaves folders that the package has made, and a removal leaves none that is empty.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
if [ "$1" -eq 0 ]; then
    rmdir /usr/share/doc/overlord /usr/share/licenses/overlord 2>/dev/null || :
fi
exit 0
