#!/bin/sh
# Starts the demo's sshd. The host key is copied, since sshd refuses a key that others may read.
set -eu
install -m 600 /run/secrets/demo_host_key /tmp/host_key
exec /usr/sbin/sshd -D -e -f /opt/demo/sshd_config
