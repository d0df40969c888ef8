// Turns with the npm package openai, as its users write them: `turns.mjs SCENE SESSION`.
//
// The environment holds address and token; the package is in the folder SDK. Prints the answers as
// JSON, `{id, lane, status, text}`, in order of their ends. The caller judges them.
import { createRequire } from "node:module";

const from = createRequire(`${process.env.SDK}/package.json`);
const { OpenAI } = from("openai");
const { ResponsesWS } = from("openai/resources/responses/ws");

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

const scenes = {
  // A plain answer and a streamed one; the body names the session.
  async *over_http(client) {
    const own = { ...ask, prompt_cache_key: session };
    const first = await client.responses.create({ ...own, input: [said("one")] });
    yield shown(first);
    const input = [said("one"), ...first.output, said("two")];
    for await (const event of await client.responses.create({ ...own, input, stream: true })) {
      if (event.type === "response.completed") yield shown(event.response);
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

const all = [];
for await (const answer of scenes[scene](new OpenAI({ maxRetries: 0 }))) all.push(answer);
console.log(JSON.stringify(all));
