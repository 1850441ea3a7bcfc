#!/bin/sh
# cdc-archiver with the settings, the account and the rights of the service: for root. Another database user's password, as
# init-db may want it, is taken from the environment.
set -eu
set -a
. /etc/default/cdc-archiver
set +a
[ -n "${MYSQL_PASSWORD:-}${MYSQL_PASSWORD_FILE:-}" ] || MYSQL_PASSWORD=$(cat /etc/cdc_archiver/mysql_password)
HOME=/var/lib/cdc_archiver
export HOME
[ -z "${MYSQL_PASSWORD:-}" ] || export MYSQL_PASSWORD
exec setpriv --reuid cdc-archiver --regid cdc-archiver --init-groups /opt/cdc_archiver/bin/cdc-archiver "$@"
