#!/usr/bin/env bash
# transformers 5.24.0: a GLM-4 configuration that holds `rope_scaling` beside `rope_parameters` loses
# the base of its rotation, without a word.
#
# `rope_parameters` is the key of version 5, `rope_scaling` that of version 4; files written for
# both carry both. An empty `rope_scaling` and a null are passed over. One that says nothing but
# `{"rope_type": "default"}`, which asks for no scaling at all, takes the place of the whole
# `rope_parameters`: the base of 1,000,000 that stands there becomes the class's default, 10,000,
# and the model answers with other positions than it was trained on. A `rope_theta` at the top is
# read again in that case, and only then. A reader that wants transformers' answers must copy this.
#
# Fails when the behaviour has changed. Needs python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
cat >"$folder/seen.py" <<'END'
from transformers import Glm4Config

given = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
cases = {
    "rope_parameters alone": ({}, 1e6),
    "an empty rope_scaling": ({"rope_scaling": {}}, 1e6),
    "a null": ({"rope_scaling": None}, 1e6),
    "one of type default": ({"rope_scaling": {"rope_type": "default"}}, 1e4),
    "the same, theta on top": ({"rope_scaling": {"rope_type": "default"}, "rope_theta": 5e4}, 5e4),
}
for name, (more, expected) in cases.items():
    theta = Glm4Config.from_dict({**given, **more}).rope_parameters["rope_theta"]
    print(f"{name:24} {theta:>9.0f}")
    assert theta == expected, f"{expected:.0f} was seen before"
END
"$folder/venv/bin/python" "$folder/seen.py" 2>/dev/null
