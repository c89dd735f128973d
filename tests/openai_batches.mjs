// Batches as a user of the openai package for Node makes them, against the server of the arguments.
import assert from "node:assert";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3], maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const url = "/v1/completions";
const requests = [...Array(8).keys()].map((number) => ({
  custom_id: `request-${number}`, method: "POST", url,
  body: { model, prompt: "Alice was", max_tokens: 6, temperature: 0.8, seed: number },
}));
const text = requests.map((line) => JSON.stringify(line)).join("\n");
const file = await client.files.create({ file: await toFile(Buffer.from(text), "input.jsonl"), purpose: "batch" });
let batch = await client.batches.create({ input_file_id: file.id, endpoint: url, completion_window: "24h" });
for (let round = 0; !["completed", "failed", "expired", "cancelled"].includes(batch.status); round++) {
  assert(round < 1200, JSON.stringify(batch));
  await new Promise((done) => setTimeout(done, 100));
  batch = await client.batches.retrieve(batch.id);
}
assert.equal(batch.status, "completed");
const output = await (await client.files.content(batch.output_file_id)).text();
const lines = output.trim().split("\n").map((line) => JSON.parse(line));
assert.deepEqual(lines.map((line) => line.custom_id), requests.map((line) => line.custom_id));
for (const [number, line] of lines.entries()) {
  const alone = await client.completions.create(requests[number].body);
  assert.equal(line.response.body.choices[0].text, alone.choices[0].text);
}
const listed = [];
for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
assert(listed.includes(batch.id));
assert((await client.files.delete(file.id)).deleted);
console.log("ok");
