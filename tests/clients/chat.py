"""Chat Completions with openai-python, as its users write them: `chat.py SCENE SESSION`.

The environment holds address and token. Prints the answers as JSON, `{id, lane, status, text}`, in
order of their ends. The caller judges them.
"""

import json
import sys

from openai import APIStatusError, OpenAI
from pydantic import BaseModel

TOOL = {"type": "function", "function": {"name": "exec_command", "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {"text": {"type": "string"}}}}}


def begun(session):
    """The beginning of a conversation: long enough to cache, and unlike other conversations'."""
    rule = "Answer in the fewest words that will do, and keep every rule of the house in mind. "
    return [{"role": "system", "content": f"This is {session}. " + rule * 150}]


def asking(session):
    return {"model": "gpt-5.4", "prompt_cache_key": session}


def shown(identity, reason, text):
    return {"id": identity, "lane": None, "status": "completed" if reason in ("stop", "tool_calls") else reason, "text": text}


def streamed(client, messages, **ask):
    """A streamed answer: its id, its end, its text and its message."""
    with client.chat.completions.stream(messages=messages, stream_options={"include_usage": True}, **ask) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    if final.usage is None or final.usage.prompt_tokens < 1_000:
        raise RuntimeError(f"the usage of a long prompt: {final.usage}")
    return final


def said(message):
    """An assistant's message as a request repeats it, with all its nulls."""
    return message.model_dump()


def growing(client, session):
    """Ten turns, plain and streamed."""
    messages = begun(session)
    for turn in range(10):
        messages.append({"role": "user", "content": f"question {turn}"})
        plain = client.chat.completions.create
        final = streamed(client, messages, **asking(session)) if turn % 2 else plain(messages=messages, **asking(session))
        choice = final.choices[0]
        yield shown(final.id, choice.finish_reason, choice.message.content)
        messages.append(said(choice.message))


def tools(client, session):
    """Five calls of a tool and their outputs, plain and streamed."""
    messages = begun(session)
    for turn in range(5):
        messages.append({"role": "user", "content": "make a tool call"})
        plain = client.chat.completions.create
        final = streamed(client, messages, tools=[TOOL], **asking(session)) if turn % 2 else plain(messages=messages, tools=[TOOL], **asking(session))
        message = final.choices[0].message
        (call,) = message.tool_calls
        yield shown(final.id, final.choices[0].finish_reason, json.loads(call.function.arguments)["cmd"])
        messages += [said(message), {"role": "tool", "tool_call_id": call.id, "content": "hi"}]
        final = plain(messages=messages, tools=[TOOL], **asking(session))
        yield shown(final.id, final.choices[0].finish_reason, final.choices[0].message.content)
        messages.append(said(final.choices[0].message))


def structured(client, session):
    """Ten answers in a schema, plain and streamed. The client sends their texts back."""
    messages = begun(session)
    for turn in range(10):
        messages.append({"role": "user", "content": f"question {turn}"})
        ask = {"response_format": SCHEMA, "reasoning_effort": "low", **asking(session)}
        final = streamed(client, messages, **ask) if turn % 2 else client.chat.completions.create(messages=messages, **ask)
        message = final.choices[0].message
        yield shown(final.id, final.choices[0].finish_reason, json.loads(message.content)["text"])
        messages.append({"role": "assistant", "content": message.content})


class Answer(BaseModel):
    text: str


def parsed(client, session):
    """Ten answers in a schema that the SDK reads. The client sends its messages back as they are."""
    messages = begun(session)
    for turn in range(10):
        messages.append({"role": "user", "content": f"question {turn}"})
        final = client.chat.completions.parse(messages=messages, response_format=Answer, **asking(session))
        message = final.choices[0].message
        yield shown(final.id, final.choices[0].finish_reason, message.parsed.text)
        messages.append(message)


def refused(client, session):
    """A field that an upstream of the other dialect does not have."""
    try:
        client.chat.completions.create(messages=[*begun(session), {"role": "user", "content": "one"}], seed=7, **asking(session))
    except APIStatusError as error:
        yield {"id": None, "lane": None, "status": error.code, "text": error.param}


SCENES = {scene.__name__: scene for scene in (growing, tools, structured, parsed, refused)}

if __name__ == "__main__":
    print(json.dumps(list(SCENES[sys.argv[1]](OpenAI(max_retries=0), sys.argv[2]))))
