#!/usr/bin/env bash
# minijinja 3.1.0: the default of a macro's parameter can't name an earlier parameter, and nobody
# says so: it is nothing, where Jinja2 3.1.6 has the earlier parameter's value.
#
# Defaults are computed from the last parameter to the first, so that the earlier one has no value
# yet. `{% macro m(a, b=a) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}` is `[11]` in Jinja2 and `[1]`
# in minijinja, with no error: a chat template with such a macro silently makes another prompt. The
# second difference of this kind: with `trim_blocks`, minijinja takes away the newline after
# `{% raw %}`, which Jinja2 keeps. Seen with minijinja 3.1.0 beside Jinja2 3.1.6.
#
# Fails when the behaviour has changed. Needs cargo, python3 with venv, and a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'END'
[package]
name = "macros"
version = "0.1.0"
edition = "2024"
[dependencies]
minijinja = "=3.1.0"
[profile.dev]
debug = false
END
cat >"$folder/src/main.rs" <<'END'
fn main() {
    let mut environment = minijinja::Environment::new();
    let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).build().unwrap();
    environment.set_syntax(syntax);
    for template in std::env::args().skip(1) {
        println!("{:?}", environment.render_str(&template, ()).unwrap());
    }
}
END
cat >"$folder/render.py" <<'END'
import json, sys, jinja2
environment = jinja2.Environment(trim_blocks=True)
for template in sys.argv[1:]:
    print(json.dumps(environment.from_string(template).render()))
END
templates=(
    '{% macro m(a, b=a) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}'
    $'{% raw %}\nx{% endraw %}'
)
cd "$folder"
export CARGO_TARGET_DIR=$folder/target
cargo build --quiet
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check jinja2==3.1.6
rust=$(target/debug/macros "${templates[@]}")
python=$(python/bin/python render.py "${templates[@]}")
printf 'minijinja 3.1.0:\n%s\nJinja2 3.1.6:\n%s\n' "$rust" "$python"
[ "$rust" = $'"[1]"\n"x"' ]
[ "$python" = $'"[11]"\n"\\nx"' ]
