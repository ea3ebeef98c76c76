// The official JavaScript clients, unmodified, against a running server; prints what they saw as JSON.
import OpenAI from "openai";
import { DefaultChatTransport, readUIMessageStream } from "ai";

const url = process.env.SMALTI_URL, key = process.env.SMALTI_KEY;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const question = "How long is the bridge?";
const seen = {};

const answer = await client.responses.create({ model: "assistant", input: question });
seen.response = answer.output_text;
seen.citation = answer.output[0].content[0].annotations[0].title;

seen.streamed = "";
for await (const event of await client.responses.create({ model: "assistant", input: question, stream: true })) {
  if (event.type === "response.output_text.delta") seen.streamed += event.delta;
  if (event.type === "response.completed") seen.end = event.response.status;
}

const messages = [{ role: "user", content: question }];
const chat = await client.chat.completions.create({ model: "assistant", messages });
seen.chat = chat.choices[0].message.content;
seen.chatStreamed = "";
for await (const chunk of await client.chat.completions.create({ model: "assistant", messages, stream: true })) {
  seen.chatStreamed += chunk.choices[0]?.delta?.content ?? "";
}

let run = await client.responses.create({ model: "assistant", input: question, background: true });
while (run.status === "queued" || run.status === "in_progress") {
  await new Promise((resolve) => setTimeout(resolve, 50));
  run = await client.responses.retrieve(run.id);
}
seen.background = run.output_text;

const endless = await client.responses.create({ model: "echo", input: "!endless", background: true, stream: true });
let id, last;
for await (const event of endless) {
  if (event.type === "response.created") id = event.response.id;
  last = event.sequence_number;
  if (event.type === "response.output_text.delta") break;
}
seen.cancelled = (await client.responses.cancel(id)).status;
seen.resumed = [];
for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) {
  seen.resumed.push(event.sequence_number);
}
seen.resumedAfter = last;

try {
  await client.responses.create({ model: "nowhere", input: question });
} catch (error) {
  seen.refused = error.status;
}

const transport = new DefaultChatTransport({ api: `${url}/v1/agents/assistant/chat`, headers: { Authorization: `Bearer ${key}` } });
const said = [{ id: "m1", role: "user", parts: [{ type: "text", text: question }] }];
const stream = await transport.sendMessages({ chatId: "c1", trigger: "submit-message", messages: said, abortSignal: undefined });
let message;
for await (const part of readUIMessageStream({ stream })) message = part;
seen.ui = message.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
seen.uiSource = message.parts.find((part) => part.type === "source-url")?.title;

console.log(JSON.stringify(seen));
