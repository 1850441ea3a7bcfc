#!/bin/sh
# For root: cdc-archiver with the settings, the account and the permissions of the service. Settings in
# the caller's environment stay, such as another database user and password for init-db.
set -eu
given=" $(env | sed -nE 's/^((MYSQL|CDC_ARCHIVER)_[A-Z0-9_]*)=.*/\1/p' | tr '\n' ' ')"
case $given in *" MYSQL_PASSWORD "* | *" MYSQL_PASSWORD_FILE "*) given="$given MYSQL_PASSWORD MYSQL_PASSWORD_FILE " ;; esac
# The file is read as systemd reads it, not as a shell does: a value is the rest of its line, with blanks,
# `;`, `&` and `$` in it. Quotes around it are removed, and so are backslashes, except in single quotes,
# and in double quotes before anything but `"`, `\`, `$` or a backtick.
while read -r line || [ -n "$line" ]; do
    case $line in *=*) name=${line%%=*} ;; *) continue ;; esac
    case $name in '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
    case $given in *" $name "*) continue ;; esac
    value=$(printf '%s\n' "${line#*=}" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//')
    case $value in
        \'*\') value=${value#?} value=${value%?} ;;
        \"*\") value=$(printf '%s\n' "$value" | sed 's/^"//; s/"$//; s/\\\(["\\$`]\)/\1/g') ;;
        *) value=$(printf '%s\n' "$value" | sed 's/\\\(.\)/\1/g') ;;
    esac
    export "$name=$value"
done </etc/default/cdc-archiver
[ -n "${MYSQL_PASSWORD:-}${MYSQL_PASSWORD_FILE:-}" ] || MYSQL_PASSWORD=$(cat /etc/cdc_archiver/mysql_password)
[ -z "${MYSQL_PASSWORD:-}" ] || export MYSQL_PASSWORD
# `systemctl edit cdc-archiver` may have named another account.
user=$(systemctl show --property=User --value cdc-archiver)
group=$(systemctl show --property=Group --value cdc-archiver)
HOME=$(getent passwd "$user" | cut -d: -f6)
export HOME
exec setpriv --reuid "$user" --regid "$group" --init-groups /opt/cdc_archiver/bin/cdc-archiver "$@"
