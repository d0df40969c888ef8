"""What the chart does not take: each with the message that its user reads."""

import re
import unittest

from helm import HELM, VERSIONS, Refused


def plain(name, value="CANARY"):
    """A variable whose value everybody can read who can read the release."""
    return {"name": name, "value": value}


def from_config_map(name):
    return {"name": name, "valueFrom": {"configMapKeyRef": {"name": "open", "key": name}}}


def from_secret(name):
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": "warmkey", "key": name}}}


FAULTS = [
    # The schema refuses these.
    ({"replicas": 3}, r"additional properties 'replicas' not allowed"),
    ({"image": {"repo": "x"}}, r"at '/image': additional properties 'repo' not allowed"),
    ({"image": {"pullPolicy": "always"}}, r"at '/image/pullPolicy': value must be one of 'IfNotPresent', 'Always', 'Never'"),
    ({"replicaCount": "three"}, r"at '/replicaCount': got string, want integer"),
    ({"replicaCount": -1}, r"at '/replicaCount': minimum: got -1, want 0"),
    ({"secrets": [{"name": "warmkey"}]}, r"at '/secrets/0': missing property 'mountPath'"),
    ({"secrets": [{"name": "warmkey", "mountPath": "keys"}]}, r"at '/secrets/0/mountPath': 'keys' does not match pattern"),
    ({"secrets": {"warmkey": "/keys"}}, r"at '/secrets': got object, want array"),
    ({"service": {"type": "ExternalName"}}, r"at '/service/type': value must be one of"),
    ({"service": {"port": 70000}}, r"at '/service/port': maximum: got 70,?000, want 65,?535"),
    ({"autoscaling": {"scaleDownPeriodSeconds": 3600}}, r"at '/autoscaling/scaleDownPeriodSeconds': maximum"),
    ({"podDisruptionBudget": {"maxUnavailable": "half"}}, r"at '/podDisruptionBudget/maxUnavailable': 'half' does not match pattern"),
    ({"podAnnotations": {"a": 1}}, r"at '/podAnnotations/a': got number, want string"),
    ({"resources": {"requests": {"cpu": "lots"}}}, r"at '/resources/requests/cpu': 'lots' does not match pattern"),
    ({"config": {"server": {}}}, r"at '/config': got object, want string"),
    ({"extraEnv": [{"name": "A", "from": "b"}]}, r"at '/extraEnv/0': additional properties 'from' not allowed"),
    ({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "Maybe"}]}, r"whenUnsatisfiable': value must be one of"),
    ({"networkPolicy": {"clients": [{"namespace": "x"}]}}, r"at '/networkPolicy/clients/0': additional properties 'namespace' not allowed"),
    # The templates refuse these.
    ({"config": "[server]\ndrain = 5s\n"}, r"config: toml: line 2"),
    ({"config": "server = 3\n"}, r"config: server must be a section, \[server\]"),
    ({"config": '[key]\nid = "a"\n'}, r"config: key must be a list of sections, \[\[key\]\]"),
    ({"config": '[server]\ndrain = "soon"\n'}, r'config: server.drain: must be a span of time such as "30s"'),
    ({"config": "[server]\ndrain_delay = 15\n"}, r"config: server.drain_delay: must be a span of time"),
    ({"config": '[server]\nsecret = "CANARY"\n'}, r"config: server.secret is written out, and a ConfigMap is no place for a secret"),
    ({"config": '[server]\nadmin_token = "CANARY"\n'}, r"config: server.admin_token is written out"),
    ({"config": '[hop]\nsecret = "CANARY"\n'}, r"config: hop.secret is written out"),
    ({"config": '[[key]]\nid = "a"\n[[key]]\nsecret = "CANARY"\n'}, r"config: key\[1\].secret is written out"),
    ({"config": '[[client]]\ntoken = "CANARY"\n'}, r"config: client\[0\].token is written out"),
    ({"config": '[[operator]]\ntoken = "CANARY"\n'}, r"config: operator\[0\].token is written out"),
    ({"config": '[store]\nurl = "redis://:CANARY@redis"\n'}, r"config: store.url is written out"),
    ({"config": '[store]\nurl = "redis://:CAN/ARY@redis"\n'}, r"config: store.url is written out"),
    ({"extraEnv": [plain("WARMKEY__STORE__URL", "redis://:CAN/ARY@redis")]}, r"extraEnv: WARMKEY__STORE__URL is a secret"),
    ({"config": '[ledger]\nurl = "postgres://u:CANARY@pg/w"\n'}, r"config: ledger.url is written out"),
    ({"config": '[ledger]\nurl = "postgres://h/d?user=u&password=CANARY"\n'}, r"config: ledger.url is written out"),
    ({"config": '[ledger]\nurl = "postgres://h/d?%70%61ss%77ord=CANARY"\n'}, r"config: ledger.url is written out"),
    ({"config": '[ledger]\nurl = "postgres://h/d?user=u&ssl%2Dkey=%2D----BEGIN%20PRIVATE%20KEY-----CANARY"\n'}, r"config: ledger.url is written out"),
    ({"config": '[[upstream]]\nproxy = "http://u:CANARY@proxy:3128"\n'}, r"config: upstream\[0\].proxy is written out"),
    ({"extraEnv": [{"name": "WARMKEY__SERVER__DRAIN", "value": "1s"}]}, r"extraEnv: WARMKEY__SERVER__DRAIN: the grace and the ports"),
    ({"extraEnv": [{"name": "WARMKEY__SERVER__DRAIN_DELAY", "value": "1s"}]}, r"extraEnv: WARMKEY__SERVER__DRAIN_DELAY:"),
    ({"extraEnv": [{"name": "WARMKEY__SERVER__LISTEN", "value": "0.0.0.0:1"}]}, r"extraEnv: WARMKEY__SERVER__LISTEN:"),
    ({"extraEnv": [{"name": "warmkey__server__drain", "value": "1s"}]}, r"extraEnv: warmkey__server__drain: the grace and the ports"),
    ({"config": '[[key]]\nsecret = { env = "KEY" }\n', "extraEnv": [plain("KEY")]}, r"extraEnv: KEY is a secret: take it from a Secret"),
    ({"config": '[server]\nadmin_token = { env = "ADMIN" }\n', "extraEnv": [plain("ADMIN")]}, r"extraEnv: ADMIN is a secret"),
    ({"config": '[ledger]\nurl = { env = "LEDGER" }\n', "extraEnv": [plain("LEDGER")]}, r"extraEnv: LEDGER is a secret"),
    ({"config": '[[client]]\ntoken = { env = "ALICE" }\n', "extraEnv": [from_config_map("ALICE")]}, r"extraEnv: ALICE is a secret"),
    ({"extraEnv": [plain("OTEL_EXPORTER_OTLP_HEADERS", "authorization=CANARY")]}, r"extraEnv: OTEL_EXPORTER_OTLP_HEADERS is a secret"),
    ({"extraEnv": [plain("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=CANARY")]}, r"extraEnv: OTEL_EXPORTER_OTLP_TRACES_HEADERS is a secret"),
    ({"extraEnv": [plain("WARMKEY__STORE__URL", "redis://r")], "redis": {"enabled": True}}, r"extraEnv: WARMKEY__STORE__URL: redis.enabled sets it already"),
    ({"extraEnv": [from_secret("warmkey__ledger__url")], "postgresql": {"enabled": True}}, r"extraEnv: warmkey__ledger__url: postgresql.enabled sets it already"),
    ({"extraEnv": [plain("WARMKEY_SECRET")]}, r"extraEnv: WARMKEY_SECRET is a secret"),
    ({"extraEnv": [plain("warmkey__server__admin_token")]}, r"extraEnv: warmkey__server__admin_token is a secret"),
    ({"extraEnv": [plain("WARMKEY__STORE__URL", "redis://:CANARY@redis")]}, r"extraEnv: WARMKEY__STORE__URL is a secret"),
    ({"extraEnv": [plain("WARMKEY__LEDGER__URL", "postgres://pg/w?password=CANARY")]}, r"extraEnv: WARMKEY__LEDGER__URL is a secret"),
    ({"terminationGracePeriodSeconds": 1829}, r"terminationGracePeriodSeconds: 1829 would cut turns: .* is 1830"),
    ({"autoscaling": {"enabled": True, "maxReplicas": 2}}, r"autoscaling: minReplicas is more than maxReplicas"),
]


class Refusals(unittest.TestCase):
    def test_each_fault_is_refused_in_its_own_words(self):
        for version in VERSIONS:
            for values, words in FAULTS:
                with self.subTest(version=version, values=values):
                    with self.assertRaises(Refused) as refused:
                        HELM.text(version, values=values)
                    self.assertRegex(str(refused.exception), words)
                    self.assertNotIn("CANARY", str(refused.exception))

    def test_kubernetes_that_is_too_old_is_refused_and_a_cloud_s_is_not(self):
        for version in VERSIONS:
            with self.assertRaises(Refused) as refused:
                HELM.text(version, kubernetes="1.30.9")
            self.assertRegex(str(refused.exception), "kubeVersion: >=1.31.0-0")
            HELM.text(version, kubernetes="1.31.0-gke.100")

    def test_what_is_no_secret_may_be_written(self):
        config = '[store]\nurl = "redis://redis:6379"\n[[upstream]]\nproxy = "http://proxy:3128"\n'
        hashed = f'[[client]]\nid = "a"\ntoken_sha256 = "{"0" * 64}"\n[[sim.key]]\nsecret = "sk-simulated"\n'
        self.assertTrue(re.search("redis://redis:6379", HELM.text("v4", values={"config": config + hashed})))
        ledger = '[ledger]\nurl = "postgres://pg/w?sslmode=verify-full&sslkey=/run/secrets/pg%2Ekey&user=warmkey"\n'
        self.assertIn("sslmode=verify-full", HELM.text("v4", values={"config": ledger}))

    def test_variable_that_is_no_secret_or_comes_from_one_may_be_set(self):
        config = '[[key]]\nid = "a"\nsecret = { env = "KEY" }\n[[sim.key]]\nsecret = { env = "SIMULATED" }\n'
        address = plain("WARMKEY__STORE__URL", "redis://warmkey:$(REDIS_PASSWORD)@redis:6379")
        given = [from_secret("KEY"), from_secret("REDIS_PASSWORD"), address, plain("RUST_LOG", "debug"), plain("SIMULATED")]
        for version in VERSIONS:
            self.assertIn("$(REDIS_PASSWORD)", HELM.text(version, values={"config": config, "extraEnv": given}))


if __name__ == "__main__":
    unittest.main()
