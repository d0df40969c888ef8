"""Conversations of SDKs that grow over ten turns: one key each, and as warm as a single key's."""

from failing import on_one_key
from judge import answers
from parts import check
from world import REPLICAS


def conversation_that_grows(sdk):
    stays(sdk, "growing")


def conversation_with_calls_of_a_tool(sdk):
    stays(sdk, "tools")


def conversation_with_structured_answers(sdk):
    stays(sdk, "structured")


def stays(sdk, scene, count=10):
    scene = sdk.begin(scene)
    scene.answers(count)
    on_one_key(sdk.world, scene.session, served=count)
    is_warm(sdk.world.record(scene.session))
    by_both(scene)


def is_warm(turns):
    read, ideal = (sum(turn[column] for turn in turns) for column in ("cached_tokens", "ideal_cached_tokens"))
    check(ideal > 0 and read >= 0.99 * ideal, f"{read} tokens read from the cache, of {ideal} that one key would have read")


def by_both(scene):
    check({one.served_by for one in scene.exchanges} == set(REPLICAS), "both replicas take turns")


def parsed_answer_that_is_sent_back(sdk):
    stays(sdk, "parsed")


def field_that_is_not_translated(sdk):
    (told,) = sdk.begin("refused").printed()
    check((told["status"], told["text"]) == ("unsupported_parameter", "seed"), f"what its user reads: {told}")


def unnamed(scene):
    """A scenario of a client that says nowhere which session a turn belongs to."""

    def play(sdk):
        before = len(sdk.world.recorded())
        begun = sdk.begin(scene)
        begun.answers(10)
        turns = sdk.world.recorded()[before:]
        check(len(turns) == len(answers(turns)) == 10, f"one turn for each answer: {[turn['outcome'] for turn in turns]}")
        keys = {turn["key"] for turn in turns}
        check(len(keys) == 1, f"one key, not {keys}")
        if all(turn["method_path"].endswith("/chat/completions") for turn in turns):
            derived = {turn["session"] for turn in turns}
            check(len(derived) == 1 and all(derived), f"one derived key for the cache: {derived}")
        is_warm(turns)
        by_both(begun)

    play.__name__ = f"{scene}_without_a_name"
    return play


def stored_responses_that_are_asked_for_again(sdk):
    scene = sdk.begin("stored")
    printed = scene.answers(10 * 4 + 1)
    for turn in range(10):
        created, again, rest, listed = printed[4 * turn : 4 * turn + 4]
        check(created["id"] == again["id"] == rest["id"] == listed["id"], f"one response: {printed}")
        check(created["text"] == again["text"] == rest["text"], f"one text: {printed}")
        check(listed["text"] == f"question {turn}", f"its input: {listed}")
    check("not found" in printed[-1]["text"], f"its end: {printed[-1]}")
    on_one_key(sdk.world, scene.session, served=10)
    is_warm(sdk.world.record(scene.session))
    by_both(scene)


def responses_in_the_background(sdk):
    scene = sdk.begin("in_the_background")
    *polled, canceled = scene.printed()
    check(len(polled) == 10 and all(one["status"] == "completed" and one["text"] for one in polled), f"responses that are polled: {polled}")
    check(canceled["status"] == "cancelled", f"one that is canceled: {canceled}")
    on_one_key(sdk.world, scene.session, served=11)
    is_warm(sdk.world.record(scene.session))
    by_both(scene)


def structured_answers_of_the_responses_api(sdk):
    stays(sdk, "structured")


def models_that_it_may_ask_for(sdk):
    *listed, one, slashed, tuned, unknown, foreign, odd = sdk.begin("models").printed()
    names = [one["id"], slashed["id"], tuned["id"]]
    check(names == ["gpt-5.4", "org/model", "ft:gpt-5:acme::abc"], f"the models that were asked for: {names}")
    check(all(model in listed for model in (one, slashed, tuned)) and len(listed) > 5, f"a list that has them: {listed}")
    for refused, name in ((unknown, "gpt-0"), (foreign, "org/gpt-5.4"), (odd, "ft:100%")):
        check(refused["status"] == "model_not_found" and f"'{name}'" in refused["text"], f"what does not exist: {refused}")


NAMED = [conversation_that_grows, conversation_with_calls_of_a_tool, conversation_with_structured_answers]
TRANSLATED = [parsed_answer_that_is_sent_back, field_that_is_not_translated]
STORED = [
    structured_answers_of_the_responses_api,
    stored_responses_that_are_asked_for_again,
    responses_in_the_background,
    models_that_it_may_ask_for,
]
UNNAMED = [unnamed(scene) for scene in ("growing", "tools", "structured")]
STORED_UNNAMED = [unnamed(scene) for scene in ("stored", "stored_tools", "stored_structured")]
BY_RESPONSES = [unnamed(scene) for scene in ("responses", "responses_tools", "responses_structured")]
