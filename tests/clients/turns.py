"""Turns with openai-python, as its users write them: `turns.py SCENE SESSION`.

The environment holds address and token. Prints the answers as JSON, `{id, lane, status, text}`, in
order of their ends. The caller judges them.
"""

import json
import sys
import time

from openai import APIConnectionError, APIStatusError, NotFoundError, OpenAI

# Maximum time for one response in the background. A whole scene may take longer.
SECONDS = 15

SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object", "properties": {"text": {"type": "string"}}}}


def asking(session):
    """The common beginning of a session's turns: long enough to cache, and unlike other sessions'."""
    rule = "Answer in the fewest words that will do, and keep every rule of the house in mind. "
    return {"model": "gpt-5.4", "instructions": f"This is {session}. " + rule * 150, "store": False}


def said(text):
    return {"type": "message", "role": "user", "content": text}


def shown(response, lane=None):
    return {"id": response.id, "lane": lane, "status": response.status, "text": response.output_text}


def over_http(client, session):
    """Ten turns, plain and streamed; the body names the session, and repeats the conversation."""
    yield from growing(client, session, {})


def structured(client, session):
    """The same, with answers in a schema."""
    for answer in growing(client, session, {"text": {"format": SCHEMA}}):
        yield {**answer, "text": json.loads(answer["text"])["text"]}


def growing(client, session, more):
    ask, history = {"prompt_cache_key": session, **asking(session), **more}, []
    for turn in range(10):
        history.append(said(f"question {turn}"))
        if turn % 2:
            events = list(client.responses.create(input=history, stream=True, **ask))
            final = events[-1].response
        else:
            final = client.responses.create(input=history, **ask)
        yield shown(final)
        history += [item.to_dict() for item in final.output]


def answers(connection, count):
    """The next `count` answers, in order of their ends."""
    for event in connection:
        if event.type == "error":
            raise RuntimeError(event.to_json())
        if event.type in ("response.completed", "response.failed", "response.incomplete"):
            yield shown(event.response, getattr(event, "stream_id", None))
            count -= 1
            if count == 0:
                return


def two_turns(client, session):
    with client.responses.connect(extra_headers={"session-id": session}) as connection:
        ask = asking(session)
        connection.response.create(input=[said("one")], **ask)
        (first,) = answers(connection, 1)
        connection.response.create(input=[said("two")], previous_response_id=first["id"], **ask)
        yield first
        yield from answers(connection, 1)


def two_lanes(client, session):
    with client.responses.connect(extra_headers={"session-id": session}) as connection:
        ask = asking(session)
        for lane in "ab":
            connection.response.create(input=[said(f"one SLOW:5x20ms on {lane}")], stream_id=lane, **ask)
        went_on = set()
        for answer in answers(connection, 4):
            yield answer
            if answer["lane"] not in went_on:
                went_on.add(answer["lane"])
                more = {"previous_response_id": answer["id"], "stream_id": answer["lane"]}
                connection.response.create(input=[said(f"two on {answer['lane']}")], **more, **ask)


def connection_that_is_closed(client, session):
    """The SDK reconnects by itself, and then sends the requests made meanwhile."""
    ask = asking(session)

    def again(_):
        connection.response.create(input=[said("two")], **ask)

    with client.responses.connect(extra_headers={"session-id": session}, on_reconnecting=again) as connection:
        connection.response.create(input=[said("one")], **ask)
        yield from answers(connection, 2)


def in_trouble(client, session):
    """The SDK retries by itself. Its final error is shown like an answer."""
    patient = client.with_options(max_retries=2)
    for text in ("one", "two"):
        try:
            ask = {"prompt_cache_key": session, **asking(session)}
            yield shown(patient.responses.create(input=[said(text)], **ask))
        except APIStatusError as error:
            yield {"id": None, "lane": None, "status": error.code, "text": error.message}


def in_a_stream(client, session):
    """Two streamed turns. An error is shown by its name, with the text so far."""
    patient = client.with_options(max_retries=2)
    for text in ("three", "four"):
        come = ""
        ask = {"prompt_cache_key": session, **asking(session)}
        try:
            with patient.responses.stream(input=[said(text)], **ask) as stream:
                for event in stream:
                    come += event.delta if event.type == "response.output_text.delta" else ""
                yield shown(stream.get_final_response())
        except (APIConnectionError, RuntimeError) as error:
            yield {"id": None, "lane": None, "status": type(error).__name__, "text": come}


def stored(client, session):
    """Stored responses: asked for again, whole and as a stream, and listed. The last one is deleted."""
    ask, previous = asking(session) | {"store": True, "prompt_cache_key": session}, {}
    for turn in range(10):
        events = list(client.responses.create(input=[said(f"question {turn}")], stream=True, **previous, **ask))
        first = events[-1].response
        yield shown(first)
        yield shown(client.responses.retrieve(first.id))
        again = list(client.responses.retrieve(first.id, stream=True, starting_after=events[3].sequence_number))
        if [event.to_dict() for event in again] != [event.to_dict() for event in events[4:]]:
            raise RuntimeError("the rest of the stream is another one")
        yield shown(again[-1].response)
        items = client.responses.input_items.list(first.id, limit=1)
        yield {"id": first.id, "lane": None, "status": "completed", "text": items.data[0].content[0].text}
        previous = {"previous_response_id": first.id}
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
    except NotFoundError as error:
        yield {"id": None, "lane": None, "status": "completed", "text": error.message}


def in_the_background(client, session):
    """Ten responses that are polled, and one that is canceled."""
    ask, previous = asking(session) | {"store": True, "prompt_cache_key": session, "background": True}, {}
    for turn in range(10):
        first = client.responses.create(input=[said(f"question {turn}")], **previous, **ask)
        until = time.monotonic() + SECONDS
        while first.status in ("queued", "in_progress"):
            if time.monotonic() > until:
                raise RuntimeError(f"{first.id} is {first.status} after {SECONDS} s")
            time.sleep(0.02)
            first = client.responses.retrieve(first.id)
        yield shown(first)
        previous = {"previous_response_id": first.id}
    last = client.responses.create(input=[said("SLOW:40x50ms more")], **previous, **ask)
    last = client.responses.cancel(last.id)
    yield {"id": last.id, "lane": None, "status": last.status, "text": ""}


def models(client, _):
    """The list of models, some of them, and what does not exist."""
    for model in (*client.models.list(), *map(client.models.retrieve, ["gpt-5.4", "org/model", "ft:gpt-5:acme::abc"])):
        yield {"id": model.id, "lane": None, "status": "completed", "text": model.owned_by}
    for name in ("gpt-0", "org/gpt-5.4", "ft:100%"):
        try:
            client.models.retrieve(name)
        except NotFoundError as error:
            yield {"id": None, "lane": None, "status": error.code, "text": error.message}


def refused(client, session):
    """Long bodies that are refused before they have come: for their token, and for their length."""
    for options, size in (({"api_key": "sk-wrong"}, 2 << 20), ({}, 17 << 20)):
        for _ in range(4):
            try:
                client.with_options(**options).responses.create(input=[said("x" * size)], **asking(session))
            except APIStatusError as error:
                yield {"id": None, "lane": None, "status": error.code, "text": str(error.status_code)}


SCENES = {
    scene.__name__: scene
    for scene in (
        over_http,
        structured,
        two_turns,
        two_lanes,
        connection_that_is_closed,
        in_trouble,
        in_a_stream,
        stored,
        in_the_background,
        models,
        refused,
    )
}

if __name__ == "__main__":
    print(json.dumps(list(SCENES[sys.argv[1]](OpenAI(max_retries=0), sys.argv[2]))))
