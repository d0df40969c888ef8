"""LangChain's client for OpenAI, as its users write it: `chain.py SCENE SESSION`.

The environment holds address and token. Nothing names the session: LangChain sends no key for the
prompt cache by itself. Prints the answers as JSON, `{id, lane, status, text}`, in order. The caller
judges them.
"""

import json
import sys

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

TURNS = 10


class Answer(BaseModel):
    """An answer in a schema."""

    text: str


@tool
def exec_command(cmd: str) -> str:
    """Runs a command."""
    return f"ran {cmd}"


def begun(session):
    """The beginning of a conversation: long enough to cache, and unlike other conversations'."""
    rule = "Answer in the fewest words that will do, and keep every rule of the house in mind. "
    return [SystemMessage(f"This is {session}. " + rule * 150)]


def asked(turn, session, text="question"):
    return HumanMessage(f"{text} {turn} of {session}")


def model(by_responses=False):
    own = {"use_responses_api": True, "output_version": "responses/v1", "store": False} if by_responses else {}
    return ChatOpenAI(model="gpt-5.4", max_retries=0, stream_usage=True, **own)


def shown(message):
    check_usage(message)
    return {"id": message.id, "lane": None, "status": "completed", "text": message.text if message.text else message.tool_calls[0]["args"]["cmd"]}


def check_usage(message):
    usage = message.usage_metadata
    if not usage or usage["input_tokens"] < 1_000:
        raise RuntimeError(f"the usage of a long prompt: {usage}")


def streamed(client, messages):
    """The whole message of a streamed answer."""
    whole = None
    for chunk in client.stream(messages):
        whole = chunk if whole is None else whole + chunk
    return whole


def talk(client, session):
    """Ten turns, plain and streamed."""
    messages = begun(session)
    for turn in range(TURNS):
        messages.append(asked(turn, session))
        said = streamed(client, messages) if turn % 2 else client.invoke(messages)
        yield shown(said)
        messages.append(said)


def calls(client, session):
    """Five calls of a tool and their outputs, plain and streamed."""
    bound, messages = client.bind_tools([exec_command]), begun(session)
    for turn in range(TURNS // 2):
        messages.append(asked(turn, session, "make a tool call"))
        said = streamed(bound, messages) if turn % 2 else bound.invoke(messages)
        yield shown(said)
        (call,) = said.tool_calls
        messages += [said, ToolMessage(exec_command.invoke(call["args"]), tool_call_id=call["id"])]
        said = bound.invoke(messages)
        yield shown(said)
        messages.append(said)


def schemas(client, session):
    """Ten answers in a schema."""
    bound, messages = client.with_structured_output(Answer, method="json_schema", include_raw=True), begun(session)
    for turn in range(TURNS):
        messages.append(asked(turn, session))
        answer = bound.invoke(messages)
        if answer["parsing_error"] or not answer["parsed"].text:
            raise RuntimeError(f"an answer in the schema: {answer}")
        yield shown(answer["raw"])
        messages.append(answer["raw"])


SCENES = {
    "growing": lambda session: talk(model(), session),
    "tools": lambda session: calls(model(), session),
    "structured": lambda session: schemas(model(), session),
    "responses": lambda session: talk(model(by_responses=True), session),
    "responses_tools": lambda session: calls(model(by_responses=True), session),
    "responses_structured": lambda session: schemas(model(by_responses=True), session),
}

if __name__ == "__main__":
    print(json.dumps(list(SCENES[sys.argv[1]](sys.argv[2]))))
