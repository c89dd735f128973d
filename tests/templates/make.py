"""Writes corpus.json: snippets of chat templates with what Jinja2 makes of them.

    python3 -m venv venv && venv/bin/pip install jinja2==3.1.6 && venv/bin/python make.py

The environment is the one in which transformers renders chat templates: sandboxed, both trims,
loop controls, its own `tojson`, and `generation` tags that change nothing. A snippet for which
Jinja2 has an error has `output: null`; one that depends on the clock is not here.
"""

import datetime
import json
import pathlib

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("same")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def same(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
ENVIRONMENT.filters["tojson"] = tojson
ENVIRONMENT.globals["raise_exception"] = raise_exception
ENVIRONMENT.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "x y"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <a> & 'b'.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
        },
    }
]
CONTEXT = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "add_generation_prompt": True,
    "tools": TOOLS,
    "documents": None,
    "messages": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "What is 1+2?"},
        {"role": "assistant", "content": "<think>\nadd them\n</think>\n\nLet me see.", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "tool", "content": "4", "tool_call_id": "c2"},
        {"role": "assistant", "content": "3", "reasoning_content": "easy"},
        {"role": "user", "content": "Thanks, naïve 😀!"},
    ],
    "numbers": [1, 2.5, 1e-7, 1e16, -3, 0.1, 100.0, 12345678901234567890.0],
    "words": ["b", "A", "c", "a"],
    "text": "one two  three\nfour",
    "nothing": None,
    "yes": True,
    "empty": [],
    "table": {"b": 1, "a": [True, None, "it's"], "C": {"k": 'say "x"'}},
    "rows": [{"n": 1, "t": "x"}, {"n": 2, "t": "y"}, {"n": 1, "t": "z"}],
}

HERE = pathlib.Path(__file__).parent


def calls(*numbers):
    return [{**CALL, "id": f"c{n}", "function": {"name": "add", "arguments": {"a": n} if n else {}}} for n in numbers]


# Results that come in another order than their calls, and those of which nobody knows the calls.
SWAPPED = [
    {"role": "user", "content": "1, then 2"},
    {"role": "assistant", "content": "", "tool_calls": calls(1, 2, 0)},
    {"role": "tool", "content": "two", "tool_call_id": "c2"},
    {"role": "tool", "content": "none", "tool_call_id": "c0"},
    {"role": "tool", "content": "one", "tool_call_id": "c1"},
    {"role": "assistant", "content": "", "reasoning_content": "again", "tool_calls": calls(3)},
    {"role": "tool", "content": "four", "tool_call_id": "c4"},
    {"role": "tool", "content": "three", "tool_call_id": "c3"},
]

# What requests may tell a whole template besides (`chat_template_kwargs`).
TOLD = [
    {},
    {"enable_thinking": False},
    {"enable_thinking": True, "tools": None},
    {"add_generation_prompt": False, "reasoning_effort": "low"},
    {"reasoning_effort": "high", "clear_thinking": True},
    {"reasoning_effort": None, "clear_thinking": False, "tools": []},
    {"messages": SWAPPED, "tools": None},
]


def snippets():
    """Those of snippets.txt, each after a line of ====, and every *.jinja beside it, whatever it is
    told."""
    text = (HERE / "snippets.txt").read_text()
    found = text.removeprefix("====\n").removesuffix("\n").split("\n====\n")
    templates = [path.read_text() for path in sorted(HERE.glob("*.jinja"))]
    return [(one, {}) for one in found] + [(one, told) for one in templates for told in TOLD]


def output(snippet, told):
    try:
        return ENVIRONMENT.from_string(snippet).render(**{**CONTEXT, **told})
    except Exception as error:  # whatever Python has against it
        return None


TIME = datetime.datetime(2024, 7, 4, 5, 6, 7, 8900)
FORMATS = [
    "%d %b %Y", "%Y-%m-%d %H:%M:%S", "%c", "%x", "%X", "%f", "%r", "%A %B %j %y %p %I", "%-d %-m",
    "%D %F %T %R", "%a, %e", "%U %W %u %w %G %V", "%%|%n|%t", "%z|%Z", "%h %C",
]


def main():
    cases = [
        {"template": snippet, "told": told, "output": output(snippet, told)}
        for snippet, told in snippets()
    ]
    made = {
        "jinja2": jinja2.__version__,
        "context": CONTEXT,
        "time": TIME.isoformat(),
        "times": {text: TIME.strftime(text) for text in FORMATS},
        "cases": cases,
    }
    (HERE / "corpus.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")
    print(f"Jinja2 {jinja2.__version__}: {len(cases)} snippets")


main()
