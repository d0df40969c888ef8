"""Runs a command on a busy machine: an endless loop on each core, and 50,000 connections in TIME-WAIT.

    python3 -B tests/busy.py COMMAND ...

Needs root: the command gets a network of its own with only a loopback, so that no other port is taken.
"""

import ctypes
import fcntl
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import time

COUNT = 50_000
# How long each connection lasts.
SECONDS = 60
# Enough for COUNT connections, and two fifths more in case this process is late.
EACH_SECOND = COUNT * 7 // 5 // SECONDS
# One pair of addresses has 28,000 ports, and tested servers need some of the first pair.
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 7)]
TIMEOUT = 120


def own_network():
    clone_newnet = 0x4000_0000
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newnet) != 0:
        sys.exit(f"no network of its own: {os.strerror(ctypes.get_errno())}")
    set_flags, up = 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", up))
    with open("/proc/sys/net/ipv4/tcp_max_tw_buckets", "w") as limit:
        limit.write(str(4 * COUNT))


def waiting():
    """How many connections are in TIME-WAIT."""
    with open("/proc/net/sockstat") as lines:
        words = next(line for line in lines if line.startswith("TCP:")).split()
    return int(words[words.index("tw") + 1])


def loop():
    while True:
        pass


def add_waiting(servers):
    for server in servers:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        # The side that closes first waits.
        client.close()
        accepted.close()


def keep_waiting():
    servers = [socket.create_server((address, 0)) for address in ADDRESSES]
    due = time.monotonic()
    while True:
        # Later connections open at a steady pace. The first ones were opened together and end together.
        if time.monotonic() > due:
            add_waiting(servers)
            due += len(servers) / EACH_SECOND
        elif waiting() < COUNT:
            add_waiting(servers)
        else:
            time.sleep(0.01)


def run(command):
    began, fewest = time.monotonic(), waiting()
    most = fewest
    running = subprocess.Popen(command)
    while running.poll() is None:
        now = waiting()
        fewest, most = min(fewest, now), max(most, now)
        time.sleep(0.2)
    span = time.monotonic() - began
    print(f"busy: exit {running.returncode} after {span:.0f} s, with {fewest} to {most} in TIME-WAIT", flush=True)
    return running.returncode


def main():
    own_network()
    work = [loop] * os.cpu_count() + [keep_waiting]
    busy = [multiprocessing.Process(target=part, daemon=True) for part in work]
    for process in busy:
        process.start()
    deadline = time.monotonic() + TIMEOUT
    while waiting() < COUNT:
        if time.monotonic() > deadline:
            sys.exit(f"only {waiting()} connections in TIME-WAIT after {TIMEOUT} s")
        time.sleep(0.1)
    sys.exit(run(sys.argv[1:]))


main()
