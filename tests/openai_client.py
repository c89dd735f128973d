"""What a user of the openai package does, against the server and with the API key of the arguments."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], max_retries=0)

models = client.models.list().data
assert len(models) == 1, models
model = models[0].id
assert client.models.retrieve(model).id == model

messages = [{"role": "user", "content": "Alice was beginning to get very tired"}]
chat = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
assert chat.choices[0].message.role == "assistant"
assert chat.choices[0].finish_reason in ("stop", "length")
assert chat.usage.completion_tokens <= 12
assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens

stream = client.chat.completions.create(
    model=model, messages=messages, max_tokens=12, temperature=0, stream=True,
    stream_options={"include_usage": True}, logprobs=True, top_logprobs=3,
)
text, usage, logprobs, roles = "", None, [], []
for chunk in stream:
    if chunk.usage:
        usage = chunk.usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        if choice.delta.role:
            roles.append(choice.delta.role)
        if choice.logprobs and choice.logprobs.content:
            logprobs.extend(choice.logprobs.content)
assert text == chat.choices[0].message.content, (text, chat.choices[0].message.content)
assert usage.completion_tokens == chat.usage.completion_tokens
assert roles == ["assistant"], roles
assert len(logprobs) == usage.completion_tokens
assert all(len(entry.top_logprobs) == 3 for entry in logprobs)

completion = client.completions.create(
    model=model, prompt="Alice was", max_tokens=8, temperature=0.8, seed=3, n=2, logprobs=2
)
assert [choice.index for choice in completion.choices] == [0, 1]
again = client.completions.create(
    model=model, prompt="Alice was", max_tokens=8, temperature=0.8, seed=3, n=2, logprobs=2
)
assert [c.text for c in again.choices] == [c.text for c in completion.choices]
pieces = client.completions.create(
    model=model, prompt="Alice was", max_tokens=8, temperature=0.8, seed=3, stream=True
)
assert "".join(p.choices[0].text for p in pieces if p.choices) == completion.choices[0].text

stopped = client.completions.create(
    model=model, prompt="Alice was", max_tokens=60, temperature=0, stop=["the"]
)
assert "the" not in stopped.choices[0].text
assert stopped.choices[0].finish_reason in ("stop", "length")


def refused(kind, call):
    try:
        call()
    except kind as error:
        assert error.body["message"], error.body
        return error
    raise AssertionError(f"expected {kind}")


stranger = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="sk-wrong", max_retries=0)
error = refused(openai.AuthenticationError, lambda: stranger.models.list())
assert error.code == "invalid_api_key", error.code
refused(openai.NotFoundError, lambda: client.completions.create(model="nobody", prompt="x"))
error = refused(
    openai.BadRequestError,
    lambda: client.chat.completions.create(
        model=model, messages=messages, tools=[{"type": "function", "function": {"name": "f"}}]
    ),
)
assert error.param == "tools", error.param
refused(
    openai.BadRequestError,
    lambda: client.completions.create(model=model, prompt="x", max_tokens=100_000),
)
print("ok")
