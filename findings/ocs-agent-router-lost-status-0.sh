#!/usr/bin/env bash
# Software: ocs 0.12.1 (its own FakeDataAgent), crossbar 26.10.1, autobahn 26.10.2.
#
# Behaviour: an agent that loses its router tries again for --crossbar-timeout (10 s), gives up,
#   stops, and exits with status 0. So Restart=on-failure of systemd and restart: on-failure of
#   Docker take it for done, and after a restart of the router that took 20 s no agent is left.
# Fair guess: a process that gave up says so by its exit status.
# What to do: Restart=always (unless-stopped in Docker), or --crossbar-timeout 0: it never gives up.
#
# Output seen:
#   agent: waiting at least 9.9 more seconds before giving up
#   agent: Stopping all running sessions
#   the agent exits with status 0, 17 s after the router
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail

work=$(mktemp -d)
router=
agent=
finish() {
    [ -z "$agent" ] || kill -KILL "$agent" 2>/dev/null || true
    [ -z "$router" ] || kill -KILL -- "-$router" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
changed() { echo "CHANGED: $*" >&2; exit 1; }
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install ocs==0.12.1 crossbar==26.10.1 autobahn==26.10.2 \
    Twisted==26.10.0 txaio==26.6.1 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }
PATH="$work/venv/bin:$PATH"
python - <<'END'
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in ("ocs", "crossbar", "autobahn")))
END

port=$(python -c 'import socket
print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
mkdir "$work/router" "$work/site"
cat >"$work/router/config.json" <<END
{"version": 2, "workers": [{"type": "router",
 "realms": [{"name": "test_realm", "roles": [{"name": "agent", "permissions": [
   {"uri": "observatory.", "match": "prefix",
    "allow": {"call": true, "register": true, "publish": true, "subscribe": true}}]}]}],
 "transports": [{"type": "web",
   "endpoint": {"type": "tcp", "port": $port, "interface": "127.0.0.1"},
   "paths": {
     "ws": {"type": "websocket", "auth": {"anonymous": {"type": "static", "role": "agent"}}},
     "call": {"type": "caller", "realm": "test_realm", "role": "agent", "options": {}}}}]}]}
END
cat >"$work/site/default.yaml" <<END
hub:
  wamp_server: ws://127.0.0.1:$port/ws
  wamp_http: http://127.0.0.1:$port/call
  wamp_realm: test_realm
  address_root: observatory
hosts:
  localhost:
    agent-instances:
      - {agent-class: FakeDataAgent, instance-id: fake1, arguments: [[--mode, idle]]}
END

cd "$work"
export HOME="$work" OCS_CONFIG_DIR="$work/site"
setsid crossbar start --cbdir "$work/router" >router.log 2>&1 &
router=$!
disown "$router"
started=$SECONDS
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    if ! kill -0 "$router" 2>/dev/null || [ $((SECONDS - started)) -gt 40 ]; then
        tail -n 5 router.log >&2
        not_run "the router does not start"
    fi
    sleep 0.5
done

: >agent.log
ocs-agent-cli --instance-id fake1 --site-host localhost >agent.log 2>&1 &
agent=$!
joined=$SECONDS
until grep -q 'session joined' agent.log; do
    if ! kill -0 "$agent" 2>/dev/null || [ $((SECONDS - joined)) -gt 40 ]; then
        tail -n 5 agent.log >&2
        not_run "the agent does not join"
    fi
    sleep 0.5
done
sleep 2

kill -KILL -- "-$router"
lost=$SECONDS
while kill -0 "$agent" 2>/dev/null; do
    [ $((SECONDS - lost)) -le 50 ] || changed "the agent still lives 50 s after the router"
    sleep 0.5
done
status=0
wait "$agent" || status=$?
agent=
grep -m1 -o 'waiting at least .*' agent.log | sed 's/\(\.[0-9]\)[0-9]*/\1/; s/^/agent: /' || true
grep -m1 -o 'Stopping all running sessions' agent.log | sed 's/^/agent: /' || true
echo "the agent exits with status $status, $((SECONDS - lost)) s after the router"
[ "$status" = 0 ] || changed "status $status instead of 0"
grep -q 'before giving up' agent.log || changed "the agent gave up without saying so"
echo 'As described: giving up looks like success.'
