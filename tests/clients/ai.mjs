// The AI SDK's client for OpenAI, as its users write it: `ai.mjs SCENE SESSION`.
//
// The environment holds address and token; the packages are in the folder SDK. Nothing names the
// session: the AI SDK sends no key for the prompt cache by itself. Prints the answers as JSON,
// `{id, lane, status, text}`, in order. The caller judges them.
import { createRequire } from "node:module";

const from = createRequire(`${process.env.SDK}/package.json`);
const { generateText, streamText, jsonSchema, tool, Output } = from("ai");
const { createOpenAI } = from("@ai-sdk/openai");

const TURNS = 10;
// Scenes whose answers are stored, as they are by default.
const STORED = ["stored", "stored_tools", "stored_structured"];
const [scene, session] = process.argv.slice(2);
const isStored = STORED.includes(scene);
const rule = "Answer in the fewest words that will do, and keep every rule of the house in mind. ";
const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY });
const models = { chat: openai.chat("gpt-5.4"), responses: openai.responses("gpt-5.4") };
const object = (properties) => jsonSchema({ type: "object", properties, required: Object.keys(properties), additionalProperties: false });
const tools = { exec_command: tool({ description: "Runs a command.", inputSchema: object({ cmd: { type: "string" } }) }) };
const output = () => Output.object({ schema: object({ text: { type: "string" } }) });

function shown({ response, text, toolCalls, usage, finishReason }) {
  if (!(usage.inputTokens > 1000)) throw new Error(`the usage of a long prompt: ${JSON.stringify(usage)}`);
  const status = ["stop", "tool-calls"].includes(finishReason) ? "completed" : finishReason;
  return { id: response.id, lane: null, status, text: toolCalls[0]?.input.cmd ?? text };
}

// One answer, whole: streamed or not.
async function answer(isStreamed, ask) {
  if (!isStreamed) return generateText(ask);
  const failures = [];
  const stream = streamText({ ...ask, onError: ({ error }) => failures.push(error) });
  await stream.consumeStream();
  if (failures.length) throw failures[0];
  const names = ["response", "text", "toolCalls", "usage", "finishReason"];
  const found = await Promise.all(names.map((name) => stream[name]));
  return Object.fromEntries(names.map((name, index) => [name, found[index]]));
}

const common = (model) => ({
  model,
  system: `This is ${session}. ${rule.repeat(150)}`,
  maxRetries: 0,
  // By default, the upstream stores each answer, and later turns only refer to its items.
  ...(isStored ? {} : { providerOptions: { openai: { store: false } } }),
});

async function* growing(model, more = () => ({})) {
  const messages = [];
  for (let turn = 0; turn < TURNS; turn += 1) {
    messages.push({ role: "user", content: `question ${turn} of ${session}` });
    const said = await answer(turn % 2 === 1, { ...common(model), ...more(), messages });
    yield shown(said);
    messages.push(...said.response.messages);
  }
}

async function* calling(model) {
  const messages = [];
  for (let turn = 0; turn < TURNS / 2; turn += 1) {
    messages.push({ role: "user", content: `make a tool call ${turn} of ${session}` });
    const first = await answer(turn % 2 === 1, { ...common(model), messages, tools });
    yield shown(first);
    const { toolCallId, toolName } = first.toolCalls[0];
    const result = { type: "tool-result", toolCallId, toolName, output: { type: "text", value: "hi" } };
    messages.push(...first.response.messages, { role: "tool", content: [result] });
    const second = await answer(false, { ...common(model), messages, tools });
    yield shown(second);
    messages.push(...second.response.messages);
  }
}

const scenes = {
  growing: () => growing(models.chat),
  tools: () => calling(models.chat),
  structured: () => growing(models.chat, () => ({ output: output() })),
  responses: () => growing(models.responses),
  responses_tools: () => calling(models.responses),
  responses_structured: () => growing(models.responses, () => ({ output: output() })),
  stored: () => growing(models.responses),
  stored_tools: () => calling(models.responses),
  stored_structured: () => growing(models.responses, () => ({ output: output() })),
};

const all = [];
for await (const one of scenes[scene]()) all.push(one);
console.log(JSON.stringify(all));
