"""A deployment for real clients: Redis, the simulated upstream, two replicas behind a balancer.

A recorder stands on either side: `recorder` before the balancer, where clients connect, and `inner`
before the upstream. The upstream's own record is the judge.
"""

import json
import os
import re
import secrets
import urllib.error
import urllib.request

from parts import free_port, get, start_haproxy, start_redis, wait_for
from recorder import Recorder

REPLICAS = ("one", "two")


class World:
    def __init__(self, parts, warmkey, name, simulator="", upstream="", models=()):
        """`simulator`: lines of its `[sim]`; `upstream`: lines of the gateway's one `[[upstream]]`.

        `models`: what all projects may use; without any, whatever the upstream serves.
        """
        self.parts, self._warmkey, self._name = parts, warmkey, name
        self.token = "client-" + secrets.token_hex(16)
        self.keys = [(f"{place}-{n}", f"org-{place}", f"upstream-{secrets.token_hex(8)}") for place in "ab" for n in (1, 2)]
        store = start_redis(parts, self.called("redis"))
        self._simulate(simulator, models)
        host, port = self.upstream.split(":")
        self.inner = Recorder((host, int(port)))
        # This address is for clients that call the upstream directly.
        self.direct = Recorder((host, int(port)))
        self._configuration = self._configure(store, upstream)
        self._address, self.admin = ({name: f"127.0.0.1:{free_port()}" for name in REPLICAS} for _ in range(2))
        for replica in REPLICAS:
            self._serve(replica)
        for replica in REPLICAS:
            parts.announced(self.called(replica), r"(listening on http)")
        replicas = [(replica, self._address[replica], self.admin[replica]) for replica in REPLICAS]
        self.recorder = Recorder(start_haproxy(parts, self.called("haproxy"), replicas))

    def called(self, part):
        """The name of a child process, unlike that of another world's."""
        return f"{self._name}-{part}"

    def _simulate(self, options, models):
        keys = "".join(
            f'[[sim.key]]\nid = "{name}"\nsecret = "{secret}"\norganization = "{organization}"\nmodels = {json.dumps(models)}\n'
            for name, organization, secret in self.keys
        )
        config = self.parts.path(self.called("simulate.toml"), f"[sim]\n{options}\n{keys}")
        name = self.called("simulator")
        self.parts.start(name, [self._warmkey, "simulate", "--config", config, "--listen", "127.0.0.1:0"])
        (self.upstream,) = self.parts.announced(name, r"simulating on http://(\S+)")

    def _configure(self, store, upstream):
        keys = "".join(
            f'[[key]]\nid = "{name}"\nupstream = "openai"\norganization = "{organization}"\nsecret = "{secret}"\n'
            for name, organization, secret in self.keys
        )
        return self.parts.path(
            self.called("warmkey.toml"),
            f"""
[server]
secret = "{secrets.token_hex(32)}"
drain_delay = "1s"
drain = "6s"
max_body = "16MiB"
[store]
url = "{store}"
[ledger]
url = "none:"
[[upstream]]
name = "openai"
base_url = "http://{self.inner.address}/v1"
{upstream}
{keys}
[[client]]
id = "alice"
token = "{self.token}"
""",
        )

    def _serve(self, replica):
        own = {"WARMKEY__SERVER__LISTEN": self._address[replica], "WARMKEY__SERVER__ADMIN_LISTEN": self.admin[replica]}
        command = [self._warmkey, "serve", "--config", self._configuration]
        self.parts.start(self.called(replica), command, os.environ | {"RUST_BACKTRACE": "1"} | own)

    def address(self, replica):
        """Where a replica listens for clients."""
        return self._address[replica]

    def signal(self, part, number):
        self.parts.signal(self.called(part), number)

    def kill(self, replica):
        self.parts.kill(self.called(replica))

    def ended(self, replica):
        """Waits for the end of a replica, and returns its exit code."""
        name = self.called(replica)
        wait_for(f"end of {name}", lambda: self.parts.status(name) is not None, 20)
        return self.parts.status(name)

    def complete(self):
        """Starts an ended replica at its address, and waits until the balancer sends it clients again."""
        gone = [replica for replica in REPLICAS if self.parts.status(self.called(replica)) is not None]
        for replica in gone:
            self._serve(replica)
        for replica in gone:
            wait_for(f"{replica} behind the balancer", lambda: self._served_by() == replica)

    def _served_by(self):
        """The replica that the balancer picks this time."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open("http://%s:%d/" % self.recorder.towards, timeout=5)
        except urllib.error.HTTPError as answer:
            return answer.headers["x-served-by"]
        return None

    def metric(self, replica, name):
        """The value of a metric without labels."""
        lines = get(f"http://{self.admin[replica]}/metrics").decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))

    def logged(self, replica):
        """The lines of a replica's log."""
        found = re.findall(r"^\{.*\}$", self.parts.log(self.called(replica)), re.M)
        return [json.loads(line) for line in found]

    def _simulated(self, page, order=None):
        answer = get(f"http://{self.upstream}/_sim/{page}", order)
        return json.loads(answer) if answer else None

    def recorded(self):
        """All turns on the upstream's record, oldest first."""
        return self._simulated("turns")

    def record(self, session):
        """The turns of a session on the upstream's record, without refused handshakes."""
        turns = [turn for turn in self._simulated("turns") if turn["session"] == session]
        return [turn for turn in turns if not turn["method_path"].startswith("GET ") or turn["frame"]]

    def sockets(self, session):
        """The WebSockets of a session on the upstream's record, refused handshakes included."""
        return [socket for socket in self._simulated("sockets") if socket["session"] == session]

    def close(self, **order):
        """Makes the upstream close WebSockets, and returns how many."""
        return self._simulated("close", order)

    def fault(self, **fault):
        self._simulated("fault", fault)

    def heal(self, key):
        """Clears the upstream's faults, and waits until all replicas know that this key is well."""
        get(f"http://{self.upstream}/_sim/fault", method="DELETE")
        get(f"http://{self.admin[REPLICAS[0]]}/keys/{key}/probe", {})
        state = lambda replica: {one["id"]: one["state"] for one in json.loads(get(f"http://{self.admin[replica]}/keys"))}
        wait_for(f"{key} in use again", lambda: all(state(replica)[key] != "disabled" for replica in REPLICAS))
