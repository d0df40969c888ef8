#!/usr/bin/env python3
"""The turns of the real Codex CLI, read back from a real Jaeger by the names that Warmkey gave them.

    jaeger.py --jaeger BINARY --codex FOLDER --warmkey BINARY

Codex plays over both transports, with and without traces of its own. Each turn must be one trace, or a
part of Codex's trace, with its spans, its parent and its attributes.
"""

import argparse
import glob
import json
import os
import sys
import urllib.error

import own_traces
from cli import Codex
from parts import Parts, check, free_port, get, wait_for
from stage import play

# Traces in memory, on loopback, and none of Jaeger itself.
CONFIGURATION = """
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
  telemetry:
    metrics: {{level: none}}
    logs: {{level: warn}}
extensions:
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 10000}}}}}}}}
  jaeger_query:
    storage: {{traces: memory}}
    enable_tracing: false
    http: {{endpoint: "127.0.0.1:{query}"}}
    grpc: {{endpoint: "127.0.0.1:{other}"}}
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{otlp}"}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"""
STAGES = {"authenticate", "identify", "bind", "chat gpt-5.4", "relay"}


def spans(query, trace):
    """The spans of a trace, each with its attributes and its parent's id."""
    try:
        traces = json.loads(get(f"http://127.0.0.1:{query}/api/traces/{trace}"))["data"]
    except urllib.error.HTTPError:
        return []  # Jaeger answers 404 until it has the trace.
    check(len(traces) == 1, f"one trace {trace}, not {len(traces)}")
    found = traces[0]["spans"]
    for span in found:
        span["attributes"] = {tag["key"]: tag["value"] for tag in span["tags"]}
        parents = [one["spanID"] for one in span["references"] if one["refType"] == "CHILD_OF"]
        span["parent"] = parents[0] if parents else None
    return found


def turn_of(query, name):
    """The span of a turn and the spans of its stages, once all are there."""
    trace, _, own = name.partition("-")

    def whole():
        all_of_it = spans(query, trace)
        turns = [one for one in all_of_it if one["operationName"] == "turn" and own in ("", one["spanID"])]
        if len(turns) != 1:
            return None
        stages = [one for one in all_of_it if one["parent"] == turns[0]["spanID"]]
        return (turns[0], stages) if STAGES <= {one["operationName"] for one in stages} else None

    return wait_for(f"turn {name} in Jaeger", whole, 30)


def read_back(codex, query, by_socket, traces_itself):
    words = ("-c", own_traces.EXPORTER) if traces_itself else ()
    own, names = own_traces.named(codex, by_socket, *words)
    parents = {parent.split("-")[2] for parent in own if parent}
    for name in names:
        turn, stages = turn_of(query, name)
        check(turn["parent"] in (parents if traces_itself else {None}), f"{name} is a child of {turn['parent']}, not of {parents}")
        said = turn["attributes"]
        check(said["warmkey.transport"] == ("websocket" if by_socket else "http"), f"{said}")
        check(said["warmkey.outcome"] == "completed" and said["gen_ai.usage.input_tokens"] > 0, f"{said}")
        attempt = next(one for one in stages if one["operationName"].startswith("chat "))["attributes"]
        check(attempt["warmkey.key"] == said["warmkey.key"] and attempt["gen_ai.provider.name"] == "openai", f"{attempt}")
    text = json.dumps([spans(query, name.partition("-")[0]) for name in names])
    check(not any(secret in text for _, _, secret in codex.world.keys) and codex.world.token not in text, "a trace tells a secret")


def scenarios(query):
    def turn_over_http_is_read_back(codex):
        read_back(codex, query, False, False)

    def turn_over_websocket_is_read_back(codex):
        read_back(codex, query, True, False)

    def turn_over_http_is_read_back_within_the_trace_of_codex(codex):
        read_back(codex, query, False, True)

    def turn_over_websocket_is_read_back_within_the_trace_of_codex(codex):
        read_back(codex, query, True, True)

    return [
        turn_over_http_is_read_back,
        turn_over_websocket_is_read_back,
        turn_over_http_is_read_back_within_the_trace_of_codex,
        turn_over_websocket_is_read_back_within_the_trace_of_codex,
    ]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("jaeger", "codex", "warmkey"):
        options.add_argument(f"--{name}", required=True)
    chosen = options.parse_args()
    (program,) = glob.glob(os.path.join(chosen.codex, "node_modules/@openai/codex-*/vendor/*/bin/codex"))
    with Parts() as parts:
        query, other, otlp = free_port(), free_port(), free_port()
        configuration = parts.path("jaeger.yaml", CONFIGURATION.format(query=query, other=other, otlp=otlp))
        parts.start("jaeger", [os.path.abspath(chosen.jaeger), "--config", configuration])

        def is_ready():
            try:
                return get(f"http://127.0.0.1:{query}/api/services")
            except OSError:
                return None

        wait_for("answer of Jaeger", is_ready, 30)
        os.environ["WARMKEY__TELEMETRY__OTLP_ENDPOINT"] = f"http://127.0.0.1:{otlp}"
        os.environ["WARMKEY__TELEMETRY__SAMPLE"] = "1.0"
        home = lambda world: Codex(world, os.path.abspath(program), "codex")
        return play(chosen.warmkey, [("traced", {}, scenarios(query), home)])


if __name__ == "__main__":
    sys.exit(main())
