"""Compares what an SDK is answered through the gateway with what the upstream answers it directly."""

import json
import re

from parts import check

# Ids, times and padding, which differ between any two answers.
OWN = [
    (rb'"(resp|msg|rs|fc|call|ctc|cmp|item)_[0-9A-Za-z]+"', rb'"\1_#"'),
    (rb'"chatcmpl-[0-9A-Za-z]+"', rb'"chatcmpl-#"'),
    (rb"'(resp|msg|rs)_[0-9A-Za-z]+'", rb"'\1_#'"),
    (rb'"(created|created_at|completed_at)": ?[0-9.]+', rb'"\1":0'),
    (rb'"(obfuscation|encrypted_content)": ?"[^"]*"', rb'"\1":""'),
]


def same(scene):
    """A scenario that plays a scene twice, and compares status and body of all answers."""

    def play(sdk):
        served, answered = (told(sdk, scene, directly) for directly in (False, True))
        check(served, "nothing was asked")
        for number, (through, straight) in enumerate(zip(served, answered)):
            check(through == straight, f"answer {number}: {differing(through, straight)}")
        check(len(served) == len(answered), f"{len(served)} answers, and {len(answered)} directly")

    play.__name__ = f"{scene}_as_by_the_upstream_itself"
    return play


def referring(scene):
    """As `same`, for a client that names the stored items of earlier answers instead of sending them."""
    compare = same(scene)

    def play(sdk):
        before = len(sdk.world.recorder.exchanges)
        compare(sdk)
        asked = [json.loads(one.turns[0]) for one in sdk.world.recorder.exchanges[before:]]
        check(all(body.get("store", True) for body in asked), "the upstream stores each answer")
        named = [sum(item.get("type") == "item_reference" for item in body["input"]) for body in asked]
        check(named[0] == 0 and all(one < other for one, other in zip(named, named[1:])), f"each turn names more items: {named}")
        check(not any(item.get("role") == "assistant" for body in asked for item in body["input"]), "and sends none of them")

    play.__name__ = compare.__name__
    return play


def told(sdk, scene, directly):
    """The answers of a scene, each as a line of its request, a status and a body."""
    begun = sdk.begin(scene, directly=directly)
    begun.printed()
    answers = []
    for exchange in begun.exchanges:
        body = masked(exchange.text, begun.session)
        if exchange.asked.endswith("/models"):
            # The gateway's list merges the lists of all projects, so its order may differ.
            body = json.dumps(json.loads(body), sort_keys=True)
        answer = (exchange.asked, exchange.status, body)
        # The client decides how often it polls a response in the background.
        if answer not in answers[-1:]:
            answers.append(answer)
    return answers


def masked(body, session):
    body = body.replace(session.encode(), b"SESSION")
    for pattern, name in OWN:
        body = re.sub(pattern, name, body)
    return body


def differing(one, other):
    """The first difference of two answers, with what surrounds it."""
    one, other = (json.dumps([str(part) for part in answer]) for answer in (one, other))
    at = next((index for index, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))
    return f"{one[max(0, at - 200) : at + 200]} and not {other[max(0, at - 200) : at + 200]}"


CHAT = [same(scene) for scene in ("growing", "tools", "structured")]
RESPONSES = [same(scene) for scene in ("over_http", "structured", "stored", "in_the_background", "models")]
UNNAMED = [same(scene) for scene in ("growing", "tools", "responses")]
STORED_UNNAMED = [referring(scene) for scene in ("stored", "stored_tools", "stored_structured")]
