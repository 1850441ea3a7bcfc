#!/bin/sh
# Installs the service's files where Debian has them. Run it as root, after the program itself:
#
#   python3 -m venv /opt/cdc_archiver && /opt/cdc_archiver/bin/pip install -c constraints.txt .
#   deploy/systemd/install.sh
#
# An existing configuration stays as it is. DESTDIR=DIRECTORY installs there, and starts nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}

install -D -m 644 "$here/cdc-archiver.service" "$root/etc/systemd/system/cdc-archiver.service"
install -D -m 644 "$here/cdc-archiver.sysusers" "$root/etc/sysusers.d/cdc-archiver.conf"
install -D -m 755 "$here/cdc-archiver.sh" "$root/usr/local/sbin/cdc-archiver"
[ -e "$root/etc/default/cdc-archiver" ] || install -D -m 644 "$here/cdc-archiver.default" "$root/etc/default/cdc-archiver"
[ -e "$root/etc/cdc_archiver/archiver.toml" ] \
    || install -D -m 644 "$here/archiver.toml" "$root/etc/cdc_archiver/archiver.toml"
[ -e "$root/etc/cdc_archiver/mysql_password" ] \
    || install -D -m 600 /dev/null "$root/etc/cdc_archiver/mysql_password"
# The registrar of a readout server; it starts nowhere by itself.
install -D -m 644 "$here/cdc-registrar.service" "$root/etc/systemd/system/cdc-registrar.service"
[ -e "$root/etc/default/cdc-registrar" ] || install -D -m 644 "$here/cdc-registrar.default" "$root/etc/default/cdc-registrar"
[ -e "$root/etc/cdc_archiver/registrar.toml" ] \
    || install -D -m 644 "$here/registrar.toml" "$root/etc/cdc_archiver/registrar.toml"
[ -e "$root/etc/cdc_archiver/registrar_password" ] \
    || install -D -m 600 /dev/null "$root/etc/cdc_archiver/registrar_password"

if [ -z "$root" ]; then
    systemd-sysusers cdc-archiver.conf
    install -d -m 700 -o cdc-archiver -g cdc-archiver /var/lib/cdc_archiver /var/lib/cdc_archiver/.ssh
    systemctl daemon-reload
    if [ -s /etc/cdc_archiver/mysql_password ]; then
        echo "Now: systemctl restart cdc-archiver"
    else
        echo "Now: the password into /etc/cdc_archiver/mysql_password, the settings into /etc/cdc_archiver/archiver.toml,"
        echo "key and known_hosts into /var/lib/cdc_archiver/.ssh. \`cdc-archiver check\` prints a fix for each fault; then:"
        echo "systemctl enable --now cdc-archiver"
    fi
fi
