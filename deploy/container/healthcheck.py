"""The container's health, as `/healthz` says it: exit status 0 while that is 200. Nothing but Python's own library is loaded.

The image sets the address in the environment, whose word comes after a configuration file's; who gives it as a flag gives the
container a health check of its own.
"""

import http.client
import os
import sys

EVERYWHERE = {"", "0.0.0.0", "::"}


def main() -> int:
    """Asks once; the exit status."""
    host = os.environ.get("CDC_ARCHIVER_HTTP_HOST", "")
    host = "localhost" if host in EVERYWHERE else host
    port = int(os.environ.get("CDC_ARCHIVER_HTTP_PORT") or 9184)
    try:
        connection = http.client.HTTPConnection(host, port, timeout=4)
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        print(answer.status, answer.read().decode(errors="replace").strip())
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer from {host}:{port}: {error}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
