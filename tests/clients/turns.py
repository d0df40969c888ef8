"""Turns with openai-python, as its users write them: `turns.py SCENE SESSION`.

The environment holds address and token. Prints the answers as JSON, `{id, lane, status, text}`, in
order of their ends. The caller judges them.
"""

import json
import sys

from openai import APIConnectionError, APIStatusError, NotFoundError, OpenAI


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


def text_of(content):
    """The text of an input item, which may be a string or a list of parts."""
    return content if isinstance(content, str) else content[0].text


def stored(client, session):
    """A stored response: asked for again, whole and as a stream, listed, and deleted."""
    ask = asking(session) | {"store": True, "prompt_cache_key": session}
    events = list(client.responses.create(input=[said("one")], stream=True, **ask))
    first = events[-1].response
    yield shown(first)
    yield shown(client.responses.retrieve(first.id))
    again = list(client.responses.retrieve(first.id, stream=True, starting_after=events[3].sequence_number))
    if [event.to_dict() for event in again] != [event.to_dict() for event in events[4:]]:
        raise RuntimeError("the rest of the stream is another one")
    yield shown(again[-1].response)
    items = client.responses.input_items.list(first.id, limit=1)
    yield {"id": first.id, "lane": None, "status": "completed", "text": text_of(items.data[0].content)}
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
    except NotFoundError as error:
        yield {"id": None, "lane": None, "status": "completed", "text": error.message}


def in_the_background(client, session):
    """One response that is polled, and one that is canceled."""
    ask = asking(session) | {"store": True, "prompt_cache_key": session, "background": True}
    first = client.responses.create(input=[said("one")], **ask)
    while first.status in ("queued", "in_progress"):
        first = client.responses.retrieve(first.id)
    yield shown(first)
    second = client.responses.create(input=[said("SLOW:40x50ms two")], previous_response_id=first.id, **ask)
    second = client.responses.cancel(second.id)
    yield {"id": second.id, "lane": None, "status": second.status, "text": ""}


def models(client, _):
    """The list of models, and one of them."""
    for model in (*client.models.list(), client.models.retrieve("gpt-5.4")):
        yield {"id": model.id, "lane": None, "status": "completed", "text": model.owned_by}


SCENES = {
    scene.__name__: scene
    for scene in (
        over_http,
        two_turns,
        two_lanes,
        connection_that_is_closed,
        in_trouble,
        in_a_stream,
        stored,
        in_the_background,
        models,
    )
}

if __name__ == "__main__":
    print(json.dumps(list(SCENES[sys.argv[1]](OpenAI(max_retries=0), sys.argv[2]))))
