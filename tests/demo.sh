#!/usr/bin/env bash
# `make demo`: a fleet of three minions on this machine, each a process with its own certificate and its own files, and what an
# overlord does with them. It explains each step, ends with status 0 only if everything came out as told, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly HOSTS=(web1 web2 web3)
# How long the demo waits for anything, in tenths of a second.
readonly PATIENCE=300

bin="${CARGO_TARGET_DIR:-target}/debug"
dir=""
declare -A pids=()

bold="" faint="" plain=""
if [[ -t 1 && -t 2 ]]; then bold=$'\033[1m' faint=$'\033[2m' plain=$'\033[0m'; fi

say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

fail() {
    printf '\nThe demo FAILED: %s\n' "$*" >&2
    for host in "${HOSTS[@]}"; do
        [[ -s $dir/$host/log ]] && printf -- '--- what %s wrote\n%s\n' "$host" "$(tail -n 20 "$dir/$host/log")" >&2
    done
    exit 1
}

# Shows the command as a person would type it, and runs it.
overlord() {
    local word line="overlord"
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]] || word="'$word'"
        line+=" $word"
    done
    printf '%s$ %s%s\n' "$faint" "$line" "$plain" >&2
    OVERLORD_DEMO=$dir "$bin/overlord" --home "$dir/home" "$@"
}

# Whatever the demo started carries its folder in its environment, job daemons included.
processes() { { grep -lzxF "OVERLORD_DEMO=$dir" /proc/[0-9]*/environ 2>/dev/null || true; } | cut -d/ -f3 | { grep -vx "$$" || true; }; }

clean_up() {
    local status=$?
    trap - EXIT
    if [[ -n $dir ]]; then
        local left
        for _ in $(seq 50); do
            left=$(processes)
            [[ -z $left ]] && break
            # shellcheck disable=SC2086 # one word a process
            kill -9 $left 2>/dev/null || true
            sleep 0.1
        done
        rm -rf "$dir"
    fi
    exit "$status"
}

start_minion() {
    local host=$1 log=$dir/$1/log
    OVERLORD_DEMO=$dir "$bin/minion" --config "$dir/$host/minion.toml" serve 2>"$log" </dev/null &
    pids[$host]=$!
    for _ in $(seq "$PATIENCE"); do
        grep -q listening "$log" && return
        kill -0 "${pids[$host]}" 2>/dev/null || fail "the minion of $host ended instead of listening"
        sleep 0.1
    done
    fail "the minion of $host does not listen"
}

# Asks until the job is in the state $2, as a person would, and shows what was said then.
wait_for_state() {
    local job=$1 state=$2 said
    for _ in $(seq "$PATIENCE"); do
        said=$("$bin/overlord" --home "$dir/home" job-status "$job" --output json 2>/dev/null || true)
        if [[ $said =~ \"state\":[[:space:]]*\"([A-Z]+)\" && ${BASH_REMATCH[1]} == "$state" ]]; then
            show_status "$job"
            return
        fi
        sleep 0.1
    done
    fail "job $job did not become $state; last it was: $said"
}

# 75 says that the job has not ended, which is no failure here.
show_status() { overlord job-status "$1" || [[ $? == 75 ]] || fail "job-status"; }

free_port() {
    local port
    for port in $(seq 51234 51334); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    fail "no port from 51234 to 51334 is free on 127.0.0.1"
}

say "Building both programs (a minute or two the first time)."
cargo build --locked -p overlord -p minion --bins

trap clean_up EXIT
trap 'exit 130' INT TERM
dir=$(mktemp -d "${TMPDIR:-/tmp}/overlord-demo.XXXXXX")
port=$(free_port)

say "One authority for the fleet, the overlord's own certificate, and a folder with a certificate for each host."
overlord certs init
overlord certs issue "${HOSTS[@]}" --out "$dir/certs"
# web2 will be held up on purpose, on a machine of any speed.
printf 'connect_timeout = "30s"\naccept_timeout = "30s"\n' >"$dir/home/overlord.toml"

say "Three minions, each with its own files, on 127.0.0.1 to 127.0.0.3, port $port. Their rules allow this caller everything."
number=0
for host in "${HOSTS[@]}"; do
    number=$((number + 1))
    mkdir -p "$dir/$host/acl.d"
    printf '[[allow]]\ncaller = "admin"\nmethods = ["*"]\n' >"$dir/$host/acl.d/rules.toml"
    printf '%s = "%s"\n' name "$host" listen "127.0.0.$number:$port" state_dir state certs_dir "$dir/certs/$host" acl_dir acl.d \
        >"$dir/$host/minion.toml"
    printf '[host.%s]\naddress = "127.0.0.%s:%s"\n' "$host" "$number" "$port" >>"$dir/home/hosts.toml"
    start_minion "$host"
    echo "$host: process ${pids[$host]}"
done

say "A synchronous call: every host answers, and equal answers are folded together."
overlord '*' test.ping
overlord 'web1;web3' command.run 'echo "$MINION_NAME has $(nproc) processors"'

say "An async job, fast on web1, slow on web3. web2 is held up for a moment, so the job is still being handed out: RUNNING."
kill -STOP "${pids[web2]}"
job=$(overlord '*' command.run 'if [ "$MINION_NAME" = web3 ]; then sleep 4; fi; echo "done on $MINION_NAME"' --async)
echo "$job"
wait_for_state "$job" RUNNING
kill -CONT "${pids[web2]}"

say "web2 goes on. web1 and web2 are done soon, web3 is not: PARTIAL, with the results so far."
wait_for_state "$job" PARTIAL

say "Once web3 is done: FINISHED. From here on the result is in the overlord's own store."
wait_for_state "$job" FINISHED

say "Another job on web1, which appends a line to a file when it starts. In the middle of it the minion is killed with -9."
job=$(overlord web1 command.run "echo started >> $dir/starts; sleep 3; echo survived" --async)
echo "$job"
for _ in $(seq "$PATIENCE"); do
    [[ -s $dir/starts ]] && break
    sleep 0.1
done
[[ -s $dir/starts ]] || fail "the job did not start"
kill -9 "${pids[web1]}"
wait "${pids[web1]}" 2>/dev/null || true
echo "killed process ${pids[web1]}"

say "The overlord says what it knows, and that web1 does not answer."
show_status "$job"

say "The minion is started again. The job went on without it, was started once, and its result is there."
start_minion web1
overlord job-status "$job" --wait --timeout 30s | tee "$dir/result"
grep -q survived "$dir/result" || fail "the result is not there"
[[ $(wc -l <"$dir/starts") == 1 ]] || fail "the job was started more than once"

say "Told to stop, the minions stop, and nothing of them is left."
kill "${pids[@]}"
for host in "${HOSTS[@]}"; do wait "${pids[$host]}" || fail "the minion of $host ended with status $?"; done
for _ in $(seq "$PATIENCE"); do
    [[ -z $(processes) ]] && break
    sleep 0.1
done
left=$(processes)
[[ -z $left ]] || fail "these processes are left: $left"
say "That was all of it."
