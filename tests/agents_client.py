"""What agents' packages do: Anthropic's Messages, OpenAI's Responses, LiteLLM and the llm tool,
against the server and with the API key of the arguments."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import anthropic
import openai

# Else it looks for prices on the internet.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm  # noqa: E402

server, key = sys.argv[1:3]
claude = anthropic.Anthropic(base_url=server, api_key=key, max_retries=0)
client = openai.OpenAI(base_url=server + "/v1", api_key=key, max_retries=0)
model = client.models.list().data[0].id
asked = "Alice was beginning to get very tired"
chat = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": asked}], max_tokens=12, temperature=0
)
answer = chat.choices[0].message.content

# Anthropic: whole, streamed, counted, refused.
messages = [{"role": "user", "content": [{"type": "text", "text": asked}]}]
# The package has no argument for it any more.
greedy = {"temperature": 0}
message = claude.messages.create(model=model, max_tokens=12, messages=messages, extra_body=greedy)
assert message.content[0].text == answer, (message.content, answer)
assert message.stop_reason in ("max_tokens", "end_turn"), message.stop_reason
usage = message.usage
num_prompt = usage.input_tokens + usage.cache_read_input_tokens
assert num_prompt == chat.usage.prompt_tokens, usage
with claude.messages.stream(
    model=model, max_tokens=12, messages=messages, extra_body=greedy
) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == answer and final.content[0].text == answer
assert final.usage.output_tokens == usage.output_tokens
counted = claude.messages.count_tokens(model=model, messages=messages)
assert counted.input_tokens == num_prompt
beta = claude.beta.messages.create(
    model=model, max_tokens=4, messages=messages, betas=["context-1m-2025-08-07"],
    system=[{"type": "text", "text": "Alice", "cache_control": {"type": "ephemeral"}}],
)
assert beta.role == "assistant"
try:
    claude.messages.create(model="nobody", max_tokens=4, messages=messages)
    raise AssertionError("there is no such model")
except anthropic.NotFoundError as error:
    assert error.body["error"]["type"] == "not_found_error", error.body

# OpenAI's Responses: whole, streamed, what isn't kept.
response = client.responses.create(model=model, input=asked, max_output_tokens=12, temperature=0)
assert response.output_text == answer, response.output_text
events = list(client.responses.create(
    model=model, input=asked, max_output_tokens=12, temperature=0, stream=True
))
assert events[0].type == "response.created" and events[0].response.status == "in_progress"
deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
assert deltas == answer and events[-1].response.output_text == answer
assert [e.sequence_number for e in events] == list(range(len(events)))
try:
    client.responses.create(model=model, input=asked, previous_response_id="resp_1")
    raise AssertionError("nothing is kept")
except openai.NotFoundError as error:
    assert error.code == "previous_response_not_found", error.code

# LiteLLM, by OpenAI's chat and by Anthropic's Messages.
for name, base in [("openai/" + model, server + "/v1"), ("anthropic/" + model, server)]:
    got = litellm.completion(
        model=name, api_base=base, api_key=key, max_tokens=12, temperature=0,
        messages=[{"role": "user", "content": asked}],
    )
    assert got.choices[0].message.content == answer, (name, got)

# LiteLLM's proxy asks what files there are before it routes batches anywhere.
at = {"custom_llm_provider": "openai", "api_base": server + "/v1", "api_key": key}
assert list(litellm.file_list(**at)) == []
line = {"custom_id": "a", "method": "POST", "url": "/v1/completions",
        "body": {"model": model, "prompt": asked, "max_tokens": 4}}
kept = litellm.create_file(file=("in.jsonl", json.dumps(line).encode()), purpose="batch", **at)
assert [it.id for it in litellm.file_list(**at)] == [kept.id]
job = litellm.create_batch(
    completion_window="24h", endpoint="/v1/completions", input_file_id=kept.id, **at
)
while job.status in ("validating", "in_progress", "finalizing"):
    time.sleep(0.1)
    job = litellm.retrieve_batch(batch_id=job.id, **at)
assert (job.status, job.request_counts.completed) == ("completed", 1), job
said = litellm.file_content(file_id=job.output_file_id, **at).content
assert json.loads(said)["response"]["body"]["choices"][0]["text"], said

# The llm tool, told of the server as its documentation says.
with tempfile.TemporaryDirectory() as folder:
    about = [{"model_id": "ours", "model_name": model, "api_base": server + "/v1",
              "api_key_name": "ours"}]
    # JSON is YAML.
    (pathlib.Path(folder) / "extra-openai-models.yaml").write_text(json.dumps(about))
    (pathlib.Path(folder) / "keys.json").write_text(json.dumps({"ours": key}))
    llm = pathlib.Path(sys.executable).parent / "llm"
    said = subprocess.run(
        [llm, "-m", "ours", "--no-log", "-o", "max_tokens", "12", "-o", "temperature", "0", asked],
        env={**os.environ, "LLM_USER_PATH": folder}, capture_output=True, text=True, timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == answer.strip(), (said.stdout, answer)
print("ok")
