// Every call that the README promises, with the official Node client. Prints one JSON object.
import OpenAI from "openai";

const client = new OpenAI();
const model = process.env.CHAT_MODEL;
const messages = [{ role: "user", content: "What is the capital of France? Answer briefly." }];
const ids = [];

const chat = await client.chat.completions
  .create({ model, messages, max_tokens: 12, temperature: 0 })
  .withResponse();
ids.push(chat.response.headers.get("x-request-id"));

const stream = await client.chat.completions
  .create({ model, messages, max_tokens: 12, stream: true, stream_options: { include_usage: true } })
  .withResponse();
ids.push(stream.response.headers.get("x-request-id"));
let streamed = "";
let usage = null;
for await (const chunk of stream.data) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const schema = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};
const structured = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 40,
  temperature: 0,
  response_format: { type: "json_schema", json_schema: { name: "answer", schema } },
});

const tool = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 60,
  tools: [{ type: "function", function: { name: "look_up", parameters: schema } }],
  tool_choice: { type: "function", function: { name: "look_up" } },
});

const input = ["the first text from Node", "the second text from Node"];
const embed = () =>
  client.embeddings.create({ model: "all-MiniLM-L6-v2", input }).withResponse();
const first = await embed();
await new Promise((resolve) => setTimeout(resolve, 500));
const second = await embed();

const models = await client.models.list();
let refused = null;
try {
  await client.chat.completions.create({ model: "nobody", messages });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, code: error.code };
}

console.log(
  JSON.stringify({
    ids,
    chat: chat.data.choices[0].message.content,
    cost: chat.response.headers.get("x-response-cost"),
    streamed,
    usage,
    structured: JSON.parse(structured.choices[0].message.content),
    tool: tool.choices[0].message.tool_calls,
    dimensions: second.data.data[0].embedding.length,
    cache: [first, second].map((answer) => answer.response.headers.get("x-cache")),
    models: models.data.map((entry) => entry.id),
    refused,
  }),
);
