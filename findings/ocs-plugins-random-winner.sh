#!/usr/bin/env bash
# Software: ocs 0.12.1 (what ocs-agent-cli finds its agents with).
#
# Behaviour: where two installed plugins bring the same agent class, which one wins changes from
#   start to start. Its documentation says that the first loaded one is used, and it
#   warns; but it loads them in the order of a set of strings, which Python shuffles each time.
# Fair guess: the choice follows the name or the order of installation, and stays.
# What to do: never let two plugins carry a class of one name; set PYTHONHASHSEED until then.
#
# Output seen:
#   twelve starts, one class, two plugins: alpha_plugin won 6, beta_plugin won 6
#   twelve starts with PYTHONHASHSEED=1  : alpha_plugin won 12
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
changed() { echo "CHANGED: $*" >&2; exit 1; }
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install ocs==0.12.1 autobahn==26.10.2 Twisted==26.10.0 \
    txaio==26.6.1 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }
"$work/venv/bin/python" -c 'from importlib.metadata import version; print("ocs", version("ocs"))'

# Two plugins as an installer would leave them.
for name in alpha_plugin beta_plugin; do
    info="$work/site/$name-1.0.dist-info"
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: %s\nVersion: 1.0\n' "$name" >"$info/METADATA"
    printf '[ocs.plugins]\n%s = %s\n' "$name" "$name" >"$info/entry_points.txt"
    echo "agents = {'NoiseAgent': {'module': '$name', 'entry_point': 'main'}}" \
        >"$work/site/$name.py"
done

winners() {  # winners SEED…: which plugin wins, once for each seed, counted
    local seed
    for seed in "$@"; do
        PYTHONPATH="$work/site" PYTHONHASHSEED=$seed \
            timeout 60 "$work/venv/bin/python" -W ignore -c '
from ocs.agent_cli import build_agent_list
print("winner", build_agent_list()["NoiseAgent"]["module"])' | sed -n 's/^winner //p'
    done | sort | uniq -c | awk '{ printf "%s%s won %s", sep, $2, $1; sep = ", " }'
}

# Seeds 0 to 11 stand for what Python draws at random; they make the outcome repeatable.
shuffled=$(winners 0 1 2 3 4 5 6 7 8 9 10 11)
echo "twelve starts, one class, two plugins: $shuffled"
fixed=$(winners 1 1 1 1 1 1 1 1 1 1 1 1)
echo "twelve starts with PYTHONHASHSEED=1  : $fixed"
case $shuffled in
    *alpha_plugin*beta_plugin*) ;;
    *) changed "one plugin won each time" ;;
esac
case $fixed in
    *won\ 12) ;;
    *) changed "the choice varies with a fixed seed too" ;;
esac
echo 'As described: the winner depends on the random order of a set.'
