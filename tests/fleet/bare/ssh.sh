#!/bin/sh
# In the place of OpenSSH's ssh: runs the command in the root of the host that is named, or says and does what the test wants of it.
echo "$*" | head -n 1 >>@DIR@/ssh.log
if [ "$1" = -V ]; then exit 0; fi
asks=no
while [ $# -gt 0 ]; do
    case $1 in
    -G) asks=yes ;;
    -F | -l | -p | -o) shift ;;
    --) shift; break ;;
    esac
    shift
done
host=@DIR@/hosts/$1
if [ $asks = yes ]; then
    printf 'user root\nhostname %s\nport 22\n' "$(cat "$host/address")"
    exit
fi
if [ -f "$host/ssh-says" ]; then
    cat "$host/ssh-says" >&2
    exit "$(cat "$host/ssh-code")"
fi
if [ -f "$host/claims" ]; then
    cat "$host/claims"
    exec cat >/dev/null
fi
export FAKE_HOST="$host" FAKE_COMMAND="$2"
# As with sshd, what runs there is not ours to end.
exec 3<&0
setsid @UNSHARE@ sh -c '
    mount --rbind / "$FAKE_HOST/root" || exit 255
    for folder in etc var run; do mount --bind "$FAKE_HOST/$folder" "$FAKE_HOST/root/$folder" || exit 255; done
    PATH=$FAKE_HOST/fake:$PATH
    echo "Last login: today"
    exec chroot "$FAKE_HOST/root" sh -c "cd / && $FAKE_COMMAND"
' <&3 3<&- &
exec <&- 3<&-
wait $!
