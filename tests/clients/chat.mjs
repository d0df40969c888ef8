// Chat Completions with the npm package openai, as its users write them: `chat.mjs SCENE SESSION`.
//
// The environment holds address and token; the package is in the folder SDK. Prints the answers as
// JSON, `{id, lane, status, text}`, in order of their ends. The caller judges them.
import { createRequire } from "node:module";

const from = createRequire(`${process.env.SDK}/package.json`);
const { OpenAI } = from("openai");

const [scene, session] = process.argv.slice(2);
const rule = "Answer in the fewest words that will do, and keep every rule of the house in mind. ";
const ask = { model: "gpt-5.4", prompt_cache_key: session };
const begun = () => [{ role: "system", content: `This is ${session}. ${rule.repeat(150)}` }];
const properties = { cmd: { type: "string" } };
const tools = [{ type: "function", function: { name: "exec_command", parameters: { type: "object", properties } } }];
const schema = { name: "answer", schema: { type: "object", properties: { text: { type: "string" } } } };

function shown({ id, choices: [{ finish_reason, message }] }) {
  const status = ["stop", "tool_calls"].includes(finish_reason) ? "completed" : finish_reason;
  const [call] = message.tool_calls ?? [];
  return { id, lane: null, status, text: call ? JSON.parse(call.function.arguments).cmd : message.content };
}

async function answer(client, isStreamed, body) {
  if (!isStreamed) return client.chat.completions.create(body);
  const stream = client.chat.completions.stream({ ...body, stream_options: { include_usage: true } });
  const final = await stream.finalChatCompletion();
  if (!(final.usage?.prompt_tokens > 1000)) throw new Error(`the usage of a long prompt: ${JSON.stringify(final.usage)}`);
  return final;
}

const scenes = {
  async *growing(client) {
    const messages = begun();
    for (let turn = 0; turn < 10; turn += 1) {
      messages.push({ role: "user", content: `question ${turn}` });
      const final = await answer(client, turn % 2 === 1, { ...ask, messages });
      yield shown(final);
      messages.push(final.choices[0].message);
    }
  },

  async *tools(client) {
    const messages = begun();
    for (const isStreamed of [false, true, false, true, false]) {
      messages.push({ role: "user", content: "make a tool call" });
      const first = await answer(client, isStreamed, { ...ask, messages, tools });
      yield shown(first);
      const { message } = first.choices[0];
      messages.push(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "hi" });
      const second = await answer(client, false, { ...ask, messages, tools });
      yield shown(second);
      messages.push(second.choices[0].message);
    }
  },

  async *structured(client) {
    const format = { response_format: { type: "json_schema", json_schema: schema }, reasoning_effort: "low" };
    const messages = begun();
    for (let turn = 0; turn < 10; turn += 1) {
      messages.push({ role: "user", content: `question ${turn}` });
      const final = await answer(client, turn % 2 === 1, { ...ask, ...format, messages });
      const { content } = final.choices[0].message;
      yield { ...shown(final), text: JSON.parse(content).text };
      messages.push({ role: "assistant", content });
    }
  },

  // The messages go back as the SDK has read them, with `parsed`.
  async *parsed(client) {
    const response_format = { type: "json_schema", json_schema: { ...schema, strict: true } };
    const messages = begun();
    for (let turn = 0; turn < 10; turn += 1) {
      messages.push({ role: "user", content: `question ${turn}` });
      const final = await client.chat.completions.parse({ ...ask, response_format, messages });
      yield shown(final);
      messages.push(final.choices[0].message);
    }
  },

  async *refused(client) {
    try {
      await answer(client, false, { ...ask, seed: 7, messages: [...begun(), { role: "user", content: "one" }] });
    } catch (error) {
      yield { id: null, lane: null, status: error.code, text: error.param };
    }
  },
};

const all = [];
for await (const one of scenes[scene](new OpenAI({ maxRetries: 0 }))) all.push(one);
console.log(JSON.stringify(all));
