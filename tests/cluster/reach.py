"""Tries whether every new connection leads to a server: exits 1 at the first that does not.

    reach.py HOST PORT COUNT

A Service picks one of its replicas for each connection, so that many connections meet each of them.
"""

import socket
import sys

# A connection to a lost server gets no answer. A live server answers within this time, or at the next attempt.
ANSWER_SECONDS = 1


def main():
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for _ in range(count):
        try:
            socket.create_connection((host, port), ANSWER_SECONDS).close()
        except OSError as why:
            print(f"{host}:{port}: {why}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
