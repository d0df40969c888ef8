// Turns with the npm package openai, as its users write them: `turns.mjs SCENE SESSION`.
//
// The environment holds address and token; the package is in the folder SDK. Prints the answers as
// JSON, `{id, lane, status, text}`, in order of their ends. The caller judges them.
import { createRequire } from "node:module";
import { setTimeout } from "node:timers/promises";

const from = createRequire(`${process.env.SDK}/package.json`);
const { OpenAI } = from("openai");
const { ResponsesWS } = from("openai/resources/responses/ws");

// Maximum time for one response in the background. A whole scene may take longer.
const SECONDS = 15;

// The common beginning of a session's turns: long enough to cache, and unlike other sessions'.
const [scene, session] = process.argv.slice(2);
const rule = "Answer in the fewest words that will do, and keep every rule of the house in mind. ";
const ask = { model: "gpt-5.4", instructions: `This is ${session}. ${rule.repeat(150)}`, store: false };

const said = (content) => ({ type: "message", role: "user", content });
const texts = (response) => response.output.flatMap((item) => item.content ?? []).map((part) => part.text ?? "");
const shown = (response, lane = null) => ({ id: response.id, lane, status: response.status, text: texts(response).join("") });

// The next `count` answers, in order of their ends.
async function* answers(events, count) {
  while (count > 0) {
    const { value, done } = await events.next();
    if (done || value.type === "close") throw new Error(`closed: ${JSON.stringify(value)}`);
    if (value.type === "error") throw value.error;
    const event = value.type === "message" ? value.message : {};
    if (["response.completed", "response.failed", "response.incomplete"].includes(event.type)) {
      yield shown(event.response, event.stream_id);
      count -= 1;
    }
  }
}

async function one(events) {
  const { value } = await answers(events, 1).next();
  return value;
}

const connect = (client, options = {}) => new ResponsesWS(client, { headers: { "session-id": session }, ...options });

async function all(items) {
  const list = [];
  for await (const item of items) list.push(item);
  return list;
}

async function* growing(client, more) {
  const own = { ...ask, prompt_cache_key: session, ...more };
  const input = [];
  for (let turn = 0; turn < 10; turn += 1) {
    input.push(said(`question ${turn}`));
    const isStreamed = turn % 2 === 1;
    const made = await client.responses.create({ ...own, input, stream: isStreamed });
    const final = isStreamed ? (await all(made)).at(-1).response : made;
    yield shown(final);
    input.push(...final.output);
  }
}

const scenes = {
  // Ten turns, plain and streamed; the body names the session, and repeats the conversation.
  over_http: (client) => growing(client, {}),

  async *structured(client) {
    const schema = { type: "object", properties: { text: { type: "string" } } };
    const format = { type: "json_schema", name: "answer", schema };
    for await (const one of growing(client, { text: { format } })) yield { ...one, text: JSON.parse(one.text).text };
  },

  // Stored responses: asked for again, whole and as a stream, and listed. The last one is deleted.
  async *stored(client) {
    const own = { ...ask, prompt_cache_key: session, store: true };
    let previous = {};
    for (let turn = 0; turn < 10; turn += 1) {
      const input = [said(`question ${turn}`)];
      const events = await all(await client.responses.create({ ...own, ...previous, input, stream: true }));
      const { id } = events.at(-1).response;
      yield shown(events.at(-1).response);
      yield shown(await client.responses.retrieve(id));
      const rest = await all(await client.responses.retrieve(id, { stream: true, starting_after: events[3].sequence_number }));
      if (JSON.stringify(rest) !== JSON.stringify(events.slice(4))) throw new Error("the rest of the stream is another one");
      yield shown(rest.at(-1).response);
      const { data } = await client.responses.inputItems.list(id, { limit: 1 });
      yield { id, lane: null, status: "completed", text: data[0].content[0].text };
      previous = { previous_response_id: id };
    }
    await client.responses.delete(previous.previous_response_id);
    try {
      await client.responses.retrieve(previous.previous_response_id);
    } catch (error) {
      if (error.status !== 404) throw error;
      yield { id: null, lane: null, status: "completed", text: error.message };
    }
  },

  // Ten responses that are polled, and one that is canceled.
  async *in_the_background(client) {
    const own = { ...ask, prompt_cache_key: session, store: true, background: true };
    let previous = {};
    for (let turn = 0; turn < 10; turn += 1) {
      let first = await client.responses.create({ ...own, ...previous, input: [said(`question ${turn}`)] });
      const until = Date.now() + SECONDS * 1000;
      while (["queued", "in_progress"].includes(first.status)) {
        if (Date.now() > until) throw new Error(`${first.id} is ${first.status} after ${SECONDS} s`);
        await setTimeout(20);
        first = await client.responses.retrieve(first.id);
      }
      yield shown(first);
      previous = { previous_response_id: first.id };
    }
    const last = await client.responses.create({ ...own, ...previous, input: [said("SLOW:40x50ms more")] });
    const { id, status } = await client.responses.cancel(last.id);
    yield { id, lane: null, status, text: "" };
  },

  // The list of models, some of them, and what does not exist.
  async *models(client) {
    const found = await all(await client.models.list());
    for (const name of ["gpt-5.4", "org/model", "ft:gpt-5:acme::abc"]) found.push(await client.models.retrieve(name));
    for (const { id, owned_by } of found) yield { id, lane: null, status: "completed", text: owned_by };
    for (const name of ["gpt-0", "org/gpt-5.4", "ft:100%"]) {
      try {
        await client.models.retrieve(name);
      } catch (error) {
        if (error.status !== 404) throw error;
        yield { id: null, lane: null, status: error.code, text: error.message };
      }
    }
  },

  // Long bodies that are refused before they have come: for their token, and for their length.
  async *refused(client) {
    for (const [options, size] of [[{ apiKey: "sk-wrong" }, 2 << 20], [{}, 17 << 20]]) {
      for (let turn = 0; turn < 4; turn += 1) {
        try {
          await client.withOptions(options).responses.create({ ...ask, input: [said("x".repeat(size))] });
        } catch (error) {
          if (!error.status) throw error;
          yield { id: null, lane: null, status: error.code, text: String(error.status) };
        }
      }
    }
  },

  async *two_turns(client) {
    const socket = connect(client);
    const events = socket.stream();
    socket.send({ type: "response.create", ...ask, input: [said("one")] });
    const first = await one(events);
    yield first;
    socket.send({ type: "response.create", ...ask, input: [said("two")], previous_response_id: first.id });
    yield await one(events);
    socket.close();
  },

  async *two_lanes(client) {
    const socket = connect(client);
    const events = socket.stream();
    for (const lane of ["a", "b"]) {
      socket.send({ type: "response.create", ...ask, input: [said(`one SLOW:5x20ms on ${lane}`)], stream_id: lane });
    }
    const wentOn = new Set();
    for await (const answer of answers(events, 4)) {
      yield answer;
      if (wentOn.has(answer.lane)) continue;
      wentOn.add(answer.lane);
      const more = { previous_response_id: answer.id, stream_id: answer.lane };
      socket.send({ type: "response.create", ...ask, input: [said(`two on ${answer.lane}`)], ...more });
    }
    socket.close();
  },

  // The SDK reconnects by itself, and then sends the requests made meanwhile.
  async *connection_that_is_closed(client) {
    const again = () => socket.send({ type: "response.create", ...ask, input: [said("two")] });
    const socket = connect(client, { reconnect: { onReconnecting: again } });
    const events = socket.stream();
    socket.send({ type: "response.create", ...ask, input: [said("one")] });
    yield* answers(events, 2);
    socket.close();
  },
};

console.log(JSON.stringify(await all(scenes[scene](new OpenAI({ maxRetries: 0 })))));
