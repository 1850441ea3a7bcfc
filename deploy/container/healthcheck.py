"""The container's health check: exit status 0 while `/healthz` answers 200. Loads only Python's own library.

The image sets the address in the environment, which takes precedence over a configuration file. A container that gets the
address as a flag needs a health check of its own.
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
