"""What the chart renders, run: each configuration goes through `warmkey check`, and a real Prometheus asks what the dashboard asks.

WARMKEY names the program.
"""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import unittest
import urllib.error
import urllib.parse
import urllib.request

from helm import CHART, HELM, ROOT, SETS, gateway
from test_files import dashboard, queries

sys.path.insert(0, str(ROOT / "tests" / "clients"))

from parts import Parts, free_port, get, start_redis, wait_for  # noqa: E402

WARMKEY = os.path.abspath(os.environ["WARMKEY"])
HA = CHART / "values-ha.yaml"
MOUNTED = re.compile(r"""(?<=["'])/run/secrets/[^"']+""")
FAMILY = re.compile(r"\bwarmkey_[a-z_]+\b")
# Rules are recorded every 30 s, some from others, and a rate needs two scrapes before.
RECORDED_SECONDS = 120


def config(objects):
    return next(one["data"]["warmkey.toml"] for one in objects if one["kind"] == "ConfigMap" and "warmkey.toml" in one["data"])


def environment(objects, store):
    """The environment of a replica: values from Secrets are made up, and the store is one that can be reached.

    A trial PostgreSQL cannot be reached from here, so its ledger is left out."""
    (container,) = gateway(objects)["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value", f"{one['name']}-" + "x" * 32) for one in container["env"]}
    names = {name: value for name, value in os.environ.items() if not name.startswith("WARMKEY")}
    ledger = {"WARMKEY__LEDGER__URL": "none:"} if "WARMKEY__LEDGER__URL" in told else {}
    return names | told | ledger | ({"WARMKEY__STORE__URL": store} if store else {})


def in_place(parts, text, contents):
    """The configuration with every file that it names in a scratch folder, filled."""
    for number, path in enumerate(sorted(set(MOUNTED.findall(text)), key=len, reverse=True)):
        name = pathlib.PurePath(path).name
        own = parts.path(f"secret-{number}", contents.get(name, f"{name}-0123456789abcdef0123456789abcdef"))
        text = text.replace(path, own)
    return parts.path("warmkey.toml", text)


def made_certificate(parts):
    """A certificate and its key, as a Secret of Kubernetes calls them."""
    paths = {"tls.crt": parts.path("made.crt"), "tls.key": parts.path("made.key")}
    made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=warmkey"]
    command = ["openssl", "req", *made, "-keyout", paths["tls.key"], "-out", paths["tls.crt"]]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    return {name: pathlib.Path(path).read_text() for name, path in paths.items()}


class Check(unittest.TestCase):
    def test_each_rendered_configuration_could_run(self):
        with Parts() as parts:
            store = start_redis(parts, "redis")
            certificate = made_certificate(parts)
            for files in [[], [HA], *([one] for one in SETS)]:
                with self.subTest(files=files):
                    objects = HELM.objects("v4", files)
                    text = config(objects)
                    mounts = [one["mountPath"] for one in gateway(objects)["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]]
                    for path in MOUNTED.findall(text):
                        self.assertIn(str(pathlib.PurePath(path).parent), mounts)
                    is_shared = "redis" in text or "store-url" in text or any(one["metadata"]["name"].endswith("-redis") for one in objects)
                    secrets = {"clients": "alice one\n", "tokens": "bob two\n", "store-url": store} | certificate
                    file = in_place(parts, text, secrets)
                    checked = subprocess.run(
                        [WARMKEY, "check", "--config", file],
                        env=environment(objects, store if is_shared else None),
                        capture_output=True,
                        text=True,
                        timeout=60,
                    )
                    self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
                    self.assertIn("Listens on 0.0.0.0:8080 for clients", checked.stdout)
                    self.assertEqual("The store does what serving needs." in checked.stdout, is_shared)

    def test_configuration_of_the_values_is_one_that_warmkey_knows(self):
        for files in [[], [HA], *([one] for one in SETS)]:
            self.assertIsInstance(tomllib.loads(config(HELM.objects("v4", files))), dict)


class Prometheus(unittest.TestCase):
    """One replica with the HA values' configuration, before a simulated upstream, scraped every second."""

    @classmethod
    def setUpClass(cls):
        cls.parts = cls.enterClassContext(Parts())
        keys = "".join(f'[[sim.key]]\nid = "{key}"\nsecret = "sim-{key}"\norganization = "org-{key[0]}"\n' for key in ("a-1", "b-1"))
        command = [WARMKEY, "simulate", "--config", cls.parts.path("sim.toml", keys), "--listen", "127.0.0.1:0"]
        cls.parts.start("simulator", command)
        (upstream,) = cls.parts.announced("simulator", r"simulating on http://(\S+)")
        store = start_redis(cls.parts, "redis")
        objects = HELM.objects("v4", [HA])
        text = config(objects) + f'[[upstream]]\nname = "openai"\nbase_url = "http://{upstream}/v1"\n'
        secrets = {"clients": "alice alice-token\n", "store-url": store, "key-a-1": "sim-a-1", "key-b-1": "sim-b-1"}
        own = {"WARMKEY__SERVER__LISTEN": "127.0.0.1:0", "WARMKEY__SERVER__ADMIN_LISTEN": "127.0.0.1:0"}
        command = [WARMKEY, "serve", "--config", in_place(cls.parts, text, secrets)]
        cls.parts.start("replica", command, environment(objects, None) | own)
        cls.clients, cls.admin = cls.parts.announced("replica", r"listening on http://(\S+) \(admin http://(\S+)\)")
        cls.play("early")
        cls.port = free_port()
        configuration = f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{CHART}/files/rules.yaml"]
scrape_configs:
  - job_name: warmkey
    static_configs: [{{targets: ["{cls.admin}"]}}]
"""
        command = ["prometheus", f"--config.file={cls.parts.path('prometheus.yml', configuration)}"]
        options = [f"--storage.tsdb.path={cls.parts.path('tsdb')}", f"--web.listen-address=127.0.0.1:{cls.port}"]
        cls.parts.start("prometheus", command + options)
        wait_for("first scrape", lambda: cls.asked("warmkey_active_turns"), 30)
        cls.play("late")

    @classmethod
    def play(cls, session, turns=3):
        """A session of some turns, each with all that was said before."""
        said = ["A long beginning, as a coding session has one. " * 400]
        for turn in range(turns):
            said.append(f"Go on with step {turn}.")
            items = [{"role": "user", "content": text} for text in said]
            body = json.dumps({"model": "gpt-5.4", "input": items, "stream": True, "store": False, "prompt_cache_key": session})
            headers = {"authorization": "Bearer alice-token", "content-type": "application/json", "session-id": session}
            request = urllib.request.Request(f"http://{cls.clients}/v1/responses", body.encode(), headers)
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
                assert b"response.completed" in answer.read()

    @classmethod
    def asked(cls, query):
        """The values of a query's series."""
        try:
            answer = get(f"http://127.0.0.1:{cls.port}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        except (urllib.error.URLError, ConnectionError):
            return []
        return [float(series["value"][1]) for series in json.loads(answer)["data"]["result"]]

    def test_each_query_of_the_dashboard_has_a_series(self):
        for title, query in queries():
            with self.subTest(panel=title, query=query):
                wait_for(f"series of {query}", lambda: any(math.isfinite(value) for value in self.asked(query)), RECORDED_SECONDS)

    def test_a_query_that_no_metric_answers_is_noticed(self):
        self.assertEqual(self.asked("sum(rate(warmkey_imagined_total[5m]))"), [])

    def test_each_metric_that_is_asked_for_is_on_the_page(self):
        page = get(f"http://{self.admin}/metrics").decode().splitlines()
        there = {re.split("[{ ]", line)[0] for line in page}
        asked = [query for _, query in queries()] + [(CHART / "files" / "rules.yaml").read_text()]
        names = {name for text in asked for name in FAMILY.findall(text)}
        self.assertGreater(len(names), 15)
        self.assertEqual(names - there, set())

    def test_the_share_that_the_dashboard_shows_is_what_was_served(self):
        title, query = queries()[0]
        self.assertEqual(title, "Cached share")
        wait_for("cached share of a warm session", lambda: any(0.3 < value < 1 for value in self.asked(query)), 20)

    def test_rules_are_evaluated_and_no_alert_fires(self):
        def evaluated():
            groups = json.loads(get(f"http://127.0.0.1:{self.port}/api/v1/rules"))["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            return rules and all(rule["health"] == "ok" for rule in rules) and rules

        rules = wait_for("evaluation of every rule", evaluated, 60)
        self.assertEqual([rule["name"] for rule in rules if rule.get("state") == "firing"], [])
        self.assertEqual(len(dashboard()["panels"][1]["targets"]), 1)


if __name__ == "__main__":
    unittest.main()
