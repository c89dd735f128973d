"""Batches as a user of the openai package makes them, against the server of the arguments."""

import json
import sys
import time

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], max_retries=0)
model = client.models.list().data[0].id


def asks(number, url, **body):
    return {"custom_id": f"request-{number}", "method": "POST", "url": url, "body": body}


def upload(lines):
    text = "\n".join(json.dumps(line) for line in lines)
    return client.files.create(file=("input.jsonl", text.encode()), purpose="batch")


def ended(batch, timeout=120):
    start = time.time()
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.time() - start < timeout, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def lines(file):
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


# Upload, create, poll, download, compare with what the same requests are answered alone.
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
words = ["Alice was", "The Queen", "A cat", "Down the hole"]
chats = [
    asks(number, CHAT, model=model, max_tokens=6, temperature=0.8, seed=number,
         messages=[{"role": "user", "content": words[number % 4]}])
    for number in range(12)
]
completions = [
    asks(number, COMPLETION, model=model, max_tokens=6, temperature=0.8, seed=number,
         prompt=words[number % 4])
    for number in range(12)
]
for endpoint, requests in ((CHAT, chats), (COMPLETION, completions)):
    wrong = asks("wrong", endpoint, model="nobody", prompt="x", messages=[])
    file = upload(requests + [wrong])
    assert file.purpose == "batch" and client.files.retrieve(file.id).id == file.id
    assert file.id in [it.id for it in client.files.list(purpose="batch")]
    batch = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h",
        metadata={"kind": endpoint},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    batch = ended(batch)
    assert batch.status == "completed", batch
    assert batch.metadata == {"kind": endpoint}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (13, 12, 1), counts
    assert batch.usage.output_tokens > 0 and batch.usage.input_tokens_details.cached_tokens >= 0
    output = lines(batch.output_file_id)
    assert [line["custom_id"] for line in output] == [it["custom_id"] for it in requests]
    for line, request in zip(output, requests):
        assert line["response"]["status_code"] == 200 and line["error"] is None
        answer = line["response"]["body"]
        if endpoint == CHAT:
            alone = client.chat.completions.create(**request["body"])
            said = answer["choices"][0]["message"]["content"]
            assert said == alone.choices[0].message.content, (said, alone)
        else:
            alone = client.completions.create(**request["body"])
            assert answer["choices"][0]["text"] == alone.choices[0].text
        assert answer["usage"]["completion_tokens"] == alone.usage.completion_tokens
    errors = lines(batch.error_file_id)
    assert [line["custom_id"] for line in errors] == ["request-wrong"], errors
    assert errors[0]["response"]["status_code"] == 404, errors
    expires = client.files.retrieve(batch.output_file_id).expires_at
    assert expires and expires > time.time()
    assert client.files.delete(file.id).deleted

# Cancel: what is done is kept, and the rest is named.
long = [
    asks(number, COMPLETION, model=model, prompt="Alice was", max_tokens=100,
         ignore_eos=True, seed=number)
    for number in range(400)
]
batch = client.batches.create(
    input_file_id=upload(long).id, endpoint=COMPLETION, completion_window="24h"
)
while client.batches.retrieve(batch.id).request_counts.completed == 0:
    time.sleep(0.05)
batch = client.batches.cancel(batch.id)
assert batch.status in ("cancelling", "cancelled"), batch
batch = ended(batch)
assert batch.status == "cancelled" and batch.cancelled_at, batch
done, rest = lines(batch.output_file_id), lines(batch.error_file_id)
assert len(done) == batch.request_counts.completed > 0
assert sorted(line["custom_id"] for line in done + rest) == sorted(it["custom_id"] for it in long)
assert {line["error"]["code"] for line in rest} == {"batch_cancelled"}

# Expiry: the same, when its time is up.
batch = client.batches.create(
    input_file_id=upload(long).id, endpoint=COMPLETION, completion_window="2s"
)
batch = ended(batch)
assert batch.status == "expired" and batch.expired_at, batch
rest = lines(batch.error_file_id)
assert {line["error"]["code"] for line in rest} == {"batch_expired"}

# Paging.
all_of_them = [it.id for it in client.batches.list(limit=2)]
assert len(all_of_them) == 4 and all_of_them[0] == batch.id, all_of_them


def refused(kind, call):
    try:
        call()
    except kind as error:
        assert error.body["message"], error.body
        return error
    raise AssertionError(f"expected {kind}")


refused(openai.BadRequestError, lambda: client.files.create(file=b"x", purpose="assistants"))
refused(openai.NotFoundError, lambda: client.batches.retrieve("batch_x"))
refused(openai.NotFoundError, lambda: client.files.retrieve("file-x"))
error = refused(
    openai.BadRequestError,
    lambda: client.batches.create(
        input_file_id=upload(chats).id, endpoint="/v1/embeddings", completion_window="24h"
    ),
)
assert error.param == "endpoint", error.param
empty = client.files.create(file=("empty.jsonl", b"\n"), purpose="batch")
failed = ended(client.batches.create(
    input_file_id=empty.id, endpoint=CHAT, completion_window="24h"
))
assert failed.status == "failed" and failed.errors.data[0].code == "empty_file", failed
print("ok")
