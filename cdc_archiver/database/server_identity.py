"""Which server answers on a connection: behind one address there may be several, now or one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pymysql.connections import Connection
from pymysql.cursors import Cursor


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """A database server.

    Attributes:
        key: equal on all connections to one server: MySQL's server_uuid; on MariaDB host, port and server_id.
        name: for a person.
    """

    key: str
    name: str = field(compare=False)

    def __str__(self) -> str:
        return self.name


def identify_server(connection: Connection[Any]) -> ServerIdentity:
    """Asks the server who it is.

    Raises:
        pymysql.MySQLError: it does not answer.
    """
    with connection.cursor(Cursor) as cursor:  # whatever kind the connection has
        cursor.execute("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_uuid', 'server_id', 'hostname', 'port')")
        found = {str(name).lower(): str(value) for name, value in cursor.fetchall()}
    name = f"{found.get('hostname', '?')}:{found.get('port', '?')} (server_id {found.get('server_id', '?')})"
    return ServerIdentity(found.get("server_uuid") or name, name)
