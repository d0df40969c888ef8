"""Turns with openai-python, as its users write them: `turns.py SCENE SESSION`.

The environment holds address and token. Prints the answers as JSON, `{id, lane, status, text}`, in
order of their ends. The caller judges them.
"""

import json
import sys

from openai import APIConnectionError, APIStatusError, OpenAI


def asking(session):
    """The common beginning of a session's turns: long enough to cache, and unlike other sessions'."""
    rule = "Answer in the fewest words that will do, and keep every rule of the house in mind. "
    return {"model": "gpt-5.4", "instructions": f"This is {session}. " + rule * 150, "store": False}


def said(text):
    return {"type": "message", "role": "user", "content": text}


def shown(response, lane=None):
    return {"id": response.id, "lane": lane, "status": response.status, "text": response.output_text}


def over_http(client, session):
    """A plain answer and a streamed one; the body names the session."""
    ask = {"prompt_cache_key": session, **asking(session)}
    first = client.responses.create(input=[said("one")], **ask)
    yield shown(first)
    history = [said("one"), *(item.to_dict() for item in first.output), said("two")]
    for event in client.responses.create(input=history, stream=True, **ask):
        if event.type == "response.completed":
            yield shown(event.response)


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


SCENES = {
    scene.__name__: scene
    for scene in (over_http, two_turns, two_lanes, connection_that_is_closed, in_trouble, in_a_stream)
}

if __name__ == "__main__":
    print(json.dumps(list(SCENES[sys.argv[1]](OpenAI(max_retries=0), sys.argv[2]))))
