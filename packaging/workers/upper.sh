#!/bin/sh
# An example of a worker in a shell: it gives each payload back in capital letters. Its file, upper.toml:
#   command = ["/bin/sh", "/usr/share/overlord-minion/workers/upper.sh"]
#   user = "nobody"
set -eu

minion=${MINION:-minion}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 0' TERM

while id=$("$minion" task fetch "$dir/payload"); do
    if tr '[:lower:]' '[:upper:]' <"$dir/payload" >"$dir/result" 2>"$dir/problem"; then
        "$minion" task return "$id" "$dir/result"
    else
        "$minion" task return "$id" --error "$(cat "$dir/problem")"
    fi
done
