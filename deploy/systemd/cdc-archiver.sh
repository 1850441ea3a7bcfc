#!/bin/sh
# cdc-archiver with the settings, the account and the rights of the service: for root. Another database user's password, as
# init-db may want it, is taken from the environment.
set -eu
set -a
. /etc/default/cdc-archiver
set +a
[ -n "${MYSQL_PASSWORD:-}${MYSQL_PASSWORD_FILE:-}" ] || MYSQL_PASSWORD=$(cat /etc/cdc_archiver/mysql_password)
[ -z "${MYSQL_PASSWORD:-}" ] || export MYSQL_PASSWORD
# `systemctl edit cdc-archiver` may have named another account.
user=$(systemctl show --property=User --value cdc-archiver)
group=$(systemctl show --property=Group --value cdc-archiver)
HOME=$(getent passwd "$user" | cut -d: -f6)
export HOME
exec setpriv --reuid "$user" --regid "$group" --init-groups /opt/cdc_archiver/bin/cdc-archiver "$@"
