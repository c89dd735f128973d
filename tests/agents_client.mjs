// What agents do with the openai package for Node: tools, structured output, Responses and
// embeddings, against the server of the arguments.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3], maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const common = { model, messages, max_tokens: 120, temperature: 0 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const isWeather = (value) => {
  assert(["Paris", "Rome"].includes(value.city), JSON.stringify(value));
  assert(Number.isInteger(value.days) && value.days >= 1 && value.days <= 9, JSON.stringify(value));
};

// Tools: whole and streamed, the same call.
const tools = [{ type: "function", function: { name: "get_weather", description: "Tells the weather.", strict: true, parameters } }];
const choice = { type: "function", function: { name: "get_weather" } };
const called = await client.chat.completions.create({ ...common, tools, tool_choice: choice });
const call = called.choices[0].message.tool_calls[0];
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.equal(call.function.name, "get_weather");
isWeather(JSON.parse(call.function.arguments));
const streamed = client.chat.completions.stream({ ...common, tools, tool_choice: choice });
const streamedCall = (await streamed.finalChatCompletion()).choices[0].message.tool_calls[0];
assert.deepEqual(streamedCall.function.name, "get_weather");
assert.equal(streamedCall.function.arguments, call.function.arguments);
// A strict tool may be left alone; if it is called, then right.
const free = await client.chat.completions.create({ ...common, max_tokens: 40, tools });
for (const call of free.choices[0].message.tool_calls ?? []) {
  if (free.choices[0].finish_reason === "tool_calls") isWeather(JSON.parse(call.function.arguments));
}

// Structured output, of chats and of Responses.
const schema = { name: "weather", strict: true, schema: parameters };
const structured = await client.chat.completions.create({
  ...common, response_format: { type: "json_schema", json_schema: schema },
});
isWeather(JSON.parse(structured.choices[0].message.content));
const response = await client.responses.create({
  model, input: "What is the weather in Paris?", max_output_tokens: 120, temperature: 0,
  text: { format: { type: "json_schema", ...schema } },
});
isWeather(JSON.parse(response.output_text));
const ended = [];
const events = await client.responses.create({
  model, input: "What is the weather in Paris?", max_output_tokens: 120, temperature: 0, stream: true,
  tools: [{ type: "function", name: "get_weather", strict: true, parameters }], tool_choice: "required",
});
for await (const event of events) {
  if (event.type === "response.output_item.done") ended.push(event.item);
}
const item = ended.find((item) => item.type === "function_call");
assert.equal(item.name, "get_weather");
isWeather(JSON.parse(item.arguments));

// Embeddings: the package asks for base64 itself.
const embedded = await client.embeddings.create({ model, input: ["Paris", "Rome"], dimensions: 16 });
assert.equal(embedded.data.length, 2);
for (const { embedding } of embedded.data) {
  const length = Math.hypot(...embedding);
  assert(embedding.length === 16 && Math.abs(length - 1) < 1e-5, `${embedding.length}, ${length}`);
}
const floats = await client.embeddings.create({ model, input: "Paris", dimensions: 16, encoding_format: "float" });
assert.deepEqual(floats.data[0].embedding.map(Math.fround), Array.from(embedded.data[0].embedding, Math.fround));
console.log("ok");
