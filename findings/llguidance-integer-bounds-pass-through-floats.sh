#!/usr/bin/env bash
# llguidance 1.9.1 (Python): the bounds of an integer in a JSON schema pass through 64-bit floats
# and end at 2^63 - 1, mostly without a word.
#
# - `"maximum": 18446744073709551615`, as generators write an unsigned 64-bit number: the grammar
#   compiles, and allows nothing above 9223372036854775807.
# - `"maximum": 9007199254740993` (2^53 + 1): the number itself is not allowed.
# - both bounds of a signed 64-bit number: refused, "Failed to generate regex for integer range".
# - no maximum at all: any number of digits.
#
# JSON schema's numbers have no size, and jsonschema's validators in Python agree with it, so an
# answer that the schema allows can't be written, and nothing tells the client. Schemas that are
# derived from types with such bounds are better off without them.
#
# Fails when the behaviour has changed. Needs python3 with venv, and half a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check llguidance==1.9.1
cat >bounds.py <<'END'
import json

from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def matcher(schema):
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({"type": "integer", **schema}))
    return LLMatcher(tokenizer, grammar, log_level=0)


def allows(schema, number):
    it = matcher(schema)
    assert not it.is_error(), it.get_error()
    return all(it.consume_token(byte) for byte in str(number).encode()) and it.is_accepting()


unsigned = {"minimum": 0, "maximum": 2**64 - 1}
assert allows(unsigned, 2**63 - 1)
assert not allows(unsigned, 2**63), "numbers above 2^63 - 1 are allowed now"
assert not allows(unsigned, 2**64 - 1)

odd = {"maximum": 2**53 + 1}
assert allows(odd, 2**53)
assert not allows(odd, 2**53 + 1), "bounds are exact now"

signed = matcher({"minimum": -(2**63), "maximum": 2**63 - 1})
assert signed.is_error(), "the range of a signed 64-bit number compiles now"
print(signed.get_error().splitlines()[0])

assert allows({"minimum": 0}, 2**64 - 1)
print("as described")
END
venv/bin/python bounds.py
