// LangGraph's `useStream`, unmodified, called as agent-chat-ui calls it; prints what its page would show as JSON.
import { Client } from "@langchain/langgraph-sdk";
import { useStream } from "@langchain/langgraph-sdk/react";
import { createElement, useState } from "react";
import renderer from "react-test-renderer";

const apiUrl = process.env.SMALTI_URL, apiKey = process.env.SMALTI_KEY;
const seen = {};
let page, finished = 0;

function Page({ assistantId }) {
  const [threadId, setThreadId] = useState(null);
  page = useStream({
    apiUrl, apiKey, assistantId, threadId, fetchStateHistory: true,
    onThreadId: setThreadId,
    onFinish: () => finished++,
    onError: () => finished++,
  });
  void page.messages.map((message) => page.getMessagesMetadata(message));
  return null;
}

async function until(condition) {
  for (let tries = 0; !condition(); tries++) {
    if (tries > 4000) throw new Error(`it did not happen in time: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function submit(values, more) {
  const before = finished;
  page.submit(values, { streamMode: ["values"], streamSubgraphs: true, streamResumable: true, ...more });
  await until(() => finished > before && !page.isLoading);
}

const say = (text) => submit({ messages: [{ type: "human", content: [{ type: "text", text }] }] });
const parent = (position) => page.getMessagesMetadata(page.messages[position]).firstSeenState.parent_checkpoint;
const edit = (position, text) => submit({ messages: [{ type: "human", content: text }] }, { checkpoint: parent(position) });
const again = (position) => submit(undefined, { checkpoint: parent(position) });
const decide = (...decisions) => submit({}, { command: { resume: { decisions } } });
const texts = () => page.messages.map(({ content }) => (typeof content === "string" ? content : content[0].text).trim());
const branches = () => page.messages.map((message) => {
  const { branch, branchOptions } = page.getMessagesMetadata(message) ?? {};
  return branchOptions ? `${branchOptions.indexOf(branch) + 1}/${branchOptions.length}` : "";
});
const shown = () => [texts(), branches()];

const root = renderer.create(createElement(Page, { assistantId: "echo", key: "echo" }));
await until(() => page);
await say("one");
await say("two");
await edit(2, "TWO");
seen.edited = shown();
await again(3);
seen.again = shown();
await edit(0, "ONE");
seen.first = shown();
page.setBranch(page.getMessagesMetadata(page.messages[0]).branchOptions[0]);
await until(() => texts()[0] === "one");
seen.switched = shown();
await say("three");
seen.wentOn = texts();
const client = new Client({ apiUrl, apiKey });
seen.listed = (await client.threads.search({ metadata: { graph_id: "echo" }, limit: 100 })).length;

root.update(createElement(Page, { assistantId: "bank", key: "bank" }));
await until(() => page.assistantId === "bank" && !page.messages.length);
await say("5");
seen.asked = page.interrupt.value.action_requests;
await decide({ type: "edit", edited_action: { name: "transfer", args: { amount: 4 } } });
seen.paid = texts().at(-1);
await say("6");
await decide({ type: "reject", message: "too much" });
await again(page.messages.length - 1);
seen.rejected = shown().map((each) => each.at(-1));
await say("7");
await submit({}, { command: { goto: "__end__" } });
seen.resolved = page.interrupt ?? null;

console.log(JSON.stringify(seen));
process.exit(0);
