"""What Helm prints after an installation: commands that work, Secrets that are missing, and a warning where one is due."""

import re
import shlex
import unittest

from helm import CHART, HELM, VERSIONS

HA = CHART / "values-ha.yaml"
SERVER = '[server]\nadmin_token = { file = "/run/secrets/warmkey/admin-token" }\n'
CLIENT = '[[client]]\ntoken_file = "/run/secrets/warmkey/clients"\n'
TLS = '[server]\ntls = { cert_file = "/a", key_file = "/b" }\n'
REDIS = '[store]\nurl = "redis://redis:6379"\n'
TRIAL = {"data": {"clients": "alice CANARY\n"}}
INGRESS, ROUTE = {"ingress": {"enabled": True}}, {"httpRoute": {"enabled": True}}


def closed(*clients):
    """A NetworkPolicy that names these clients."""
    return {"networkPolicy": {"enabled": True, "clients": list(clients)}}


OWN, OTHERS = {"podSelector": {}}, {"namespaceSelector": {}}


def memory(limit, replay=None):
    config = {"config": f'[server]\nreplay_total = "{replay}"\n'} if replay else {}
    return {"resources": {"limits": {"memory": limit}}} | config


# A warning's words, values with which it is printed, and values with which it is not.
WARNINGS = [
    (r"the Secret warmkey was made from values", [{"trialSecret": TRIAL}], [{}]),
    (r"one replica\.", [{}, {"autoscaling": {"enabled": True, "minReplicas": 1}}], [{"replicaCount": 2}, {"autoscaling": {"enabled": True}}]),
    (
        r'several replicas, and store\.url is "memory:"',
        [{"replicaCount": 2}, {"autoscaling": {"enabled": True}}, {"autoscaling": {"enabled": True, "minReplicas": 1}}],
        [{}, {"replicaCount": 2, "config": REDIS}, {"replicaCount": 2, "redis": {"enabled": True}}],
    ),
    (r"the Redis of this release is for trials", [{"redis": {"enabled": True}}], [{}]),
    (r"the PostgreSQL of this release is for trials", [{"postgresql": {"enabled": True}}], [{}]),
    (
        r"resources\.limits\.memory holds less than server\.replay_total",
        [memory("512Mi"), memory("1500M"), memory("2Gi", "1700MiB"), memory(1_500_000_000)],
        [{}, memory("1600M"), memory("512Mi", "200MiB"), memory(None)],
    ),
    (r"clients are served through TLS .*: the Gateway needs a BackendTLSPolicy", [{"config": TLS} | ROUTE], [{"config": TLS}, ROUTE]),
    (r"server\.open is true", [{"config": "[server]\nopen = true\n"}], [{}]),
    (r"there is no server\.admin_token", [{"config": CLIENT}], [{"config": SERVER}]),
    (r"there is no \[\[client\]\]", [{"config": SERVER}], [{"config": CLIENT}]),
    (
        r"networkPolicy\.clients names no namespace",
        [closed(OWN) | INGRESS, closed(OWN) | ROUTE],
        [closed(OWN), closed() | INGRESS, closed(OWN, OTHERS) | INGRESS, INGRESS],
    ),
]


class Notes(unittest.TestCase):
    def test_each_warning_is_printed_where_it_is_due_and_nowhere_else(self):
        for words, due, not_due in WARNINGS:
            for version in VERSIONS:
                for values in due:
                    with self.subTest(words=words, version=version, due=values):
                        self.assertRegex(HELM.notes(version, values=values), f"\\nWARNING: {words}")
                for values in not_due:
                    with self.subTest(words=words, version=version, not_due=values):
                        self.assertNotRegex(HELM.notes(version, values=values), words)

    def test_every_warning_of_the_chart_is_among_them(self):
        said = re.findall(r"^WARNING: (.+)$", (CHART / "templates" / "NOTES.txt").read_text(), re.M)
        said = [line.replace("{{ .Values.trialSecret.name }}", "warmkey") for line in said]
        matching = [[words for words, *_ in WARNINGS if re.match(f".*{words}", line)] for line in said]
        self.assertEqual([len(found) for found in matching], [1] * len(WARNINGS), said)

    def test_configuration_for_real_use_has_no_warning(self):
        self.assertNotIn("WARNING", HELM.notes("v4", [HA]))

    def test_commands_lead_to_the_service(self):
        for values, url, more in (({}, "http://127.0.0.1:8080/v1/responses", set()), ({"config": TLS}, "https://127.0.0.1:8080/v1/responses", {"--insecure"})):
            with self.subTest(values=values):
                notes = HELM.notes("v4", values=values | {"service": {"port": 80}})
                forward, curl = (shlex.split(line) for line in notes.splitlines() if re.match("  (kubectl .*port-forward|curl) ", line))
                self.assertEqual(forward, ["kubectl", "-n", "warmkey", "port-forward", "service/warmkey", "8080:80", "&"])
                self.assertIn(url, curl)
                self.assertIn("authorization: Bearer $WARMKEY_TOKEN", curl)
                self.assertEqual({"--insecure"} & set(curl), more)
                self.assertIn(f"base_url is {url.split(':')[0]}://warmkey.warmkey:80.", notes)

    def test_secrets_are_named_with_their_files_unless_the_release_makes_them(self):
        notes = HELM.notes("v4", [HA])
        files = ["secret", "admin-token", "store-url", "key-a-1", "key-b-1", "clients"]
        self.assertIn("Replicas wait for the Secret warmkey with secret, admin-token, store-url,", notes)
        wanted = "  kubectl -n warmkey create secret generic warmkey" + "".join(f" --from-file={name}" for name in files)
        self.assertIn(wanted, notes.splitlines())
        variable = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "warmkey", "key": "by-variable"}}}
        self.assertIn("--from-file=by-variable", HELM.notes("v4", [HA], {"extraEnv": [variable]}))
        bare = HELM.notes("v4", [CHART / "ci" / "bare-values.yaml"])
        self.assertIn("  kubectl -n warmkey create secret generic keys --from-file=a-1", bare.splitlines())
        self.assertNotIn("These Secrets", bare)
        everything = HELM.notes("v4", [CHART / "ci" / "everything-values.yaml"])
        self.assertIn("These Secrets must be there, too: registry, warmkey-tls.", everything)
        more = {"extraEnvFrom": [{"secretRef": {"name": "more"}}, {"configMapRef": {"name": "open"}}]}
        self.assertIn("These Secrets must be there, too: more.", HELM.notes("v4", [HA], more))
        made = HELM.notes("v4", values={"trialSecret": TRIAL})
        self.assertNotIn("Replicas wait", made)
        self.assertNotIn("CANARY", made)


if __name__ == "__main__":
    unittest.main()
