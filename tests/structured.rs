//! Answers that keep to a grammar, over any number of stages: each is what its schema says, and one
//! and the same wherever it is computed.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use serde_json::{Map, Value, json};
use tests::cluster::{Cluster, Options, signal};
use tests::golden;

/// How many schemas are asked for, and the number of the first: a thousand may be asked in parts.
const SCHEMAS: [&str; 2] = ["AUTOGLM_SCHEMAS", "AUTOGLM_SCHEMAS_FROM"];

/// A folder of another model, and whether it knows quotes: `1`, or `0` for schemas without texts.
const MODEL: [&str; 2] = ["AUTOGLM_SCHEMAS_MODEL", "AUTOGLM_SCHEMAS_TEXTS"];

/// A Python with the package `jsonschema`.
const PYTHON: &str = "AUTOGLM_AGENTS_PYTHON";

/// Reads pairs of a schema and a value, and says which don't go together.
const CHECK: &str = "import json, sys, jsonschema
pairs = json.load(sys.stdin)
check = lambda s: jsonschema.Draft202012Validator({k: v for k, v in s.items() if k != 'x-guidance'})
wrong = [p for p in pairs if not check(p[0]).is_valid(p[1])]
sys.exit(json.dumps(wrong[0]) if wrong else 0)";

/// Requests that are asked at once.
const AT_ONCE: usize = 64;

/// Seconds for an answer, of a model that takes a software device tens of milliseconds a token.
const ANSWER: u64 = 4;

/// A cache that holds a few of those who ask, and chunks that cut every prompt.
const SMALL: &str = "[scheduler]\nmax_blocks = 20\nmax_num_seqs = 12\nmax_batched_tokens = 24\n\
                     reserved_tokens = 8\n";

struct Random(u64);

impl Random {
    /// The same for each number, whichever others there are.
    fn of(number: u64) -> Self {
        let mut random = Self((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A schema of this depth, of which every answer is short, however it is chosen: where it is deep
/// it isn't wide.
fn schema(random: &mut Random, depth: u32) -> Value {
    let is_wide = depth <= 2;
    match random.below(6) + if depth == 0 { 0 } else { 6 } {
        0 => json!({"type": "boolean"}),
        1 => {
            let minimum = random.below(50) as i64 - 20;
            json!({"type": "integer", "minimum": minimum, "maximum": minimum + 30})
        }
        2 => json!({"type": "string", "maxLength": 1 + random.below(4)}),
        3 => json!({"enum": ["red", 7, null, "a \"b\""]}),
        4 => json!({"type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$"}),
        5 => json!({"anyOf": [{"type": "null"}, {"const": "x"}, {"type": "boolean"}]}),
        6 | 7 => {
            let items = schema(random, depth - 1);
            let most = if is_wide { 2 } else { 1 };
            json!({"type": "array", "items": items, "minItems": 1, "maxItems": most})
        }
        _ => {
            let names = &["a", "bc", "d"][..if is_wide { 3 } else { 1 }];
            let mut properties = Map::new();
            for name in names {
                // One of them is as deep as is wanted.
                let depth = if properties.is_empty() { depth - 1 } else { 0 };
                properties.insert(name.to_string(), schema(random, depth));
            }
            let required = &names[..1 + random.below(names.len() as u64) as usize];
            json!({
                "type": "object", "properties": properties, "required": required,
                "additionalProperties": false,
            })
        }
    }
}

/// The same without texts, for models whose vocabulary has no quotes.
fn schema_of_numbers(random: &mut Random, depth: u32) -> Value {
    match random.below(4) + if depth == 0 { 0 } else { 4 } {
        0 => json!({"type": "boolean"}),
        1 => {
            let minimum = random.below(5000) as i64 - 2500;
            json!({"type": "integer", "minimum": minimum, "maximum": minimum + 300})
        }
        2 => json!({"enum": [7, -2.5, null, true, [], [1, [2]], 1000]}),
        3 => {
            let other = json!({"type": "integer", "minimum": 0, "maximum": random.below(99)});
            json!({"anyOf": [{"type": "null"}, {"const": 12.25}, other]})
        }
        _ => {
            let items = schema_of_numbers(random, depth - 1);
            let (least, more) = if depth > 2 { (1, 0) } else { (random.below(2), 1) };
            json!({"type": "array", "items": items, "minItems": least, "maxItems": least + more})
        }
    }
}

/// As others read schemas: every value is what its schema says.
fn check_by_jsonschema(pairs: &[(&Value, Value)]) {
    let Ok(python) = std::env::var(PYTHON) else {
        return println!("skipped: no Python with jsonschema ({PYTHON})");
    };
    let mut command = Command::new(python);
    let command = command.args(["-c", CHECK]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut check = command.spawn().unwrap();
    check.stdin.take().unwrap().write_all(json!(pairs).to_string().as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("ModuleNotFoundError") {
        return println!("skipped: Python lacks jsonschema");
    }
    assert!(output.status.success(), "{said}");
}

/// Whether a value is what such a schema says.
fn is_valid(schema: &Value, value: &Value) -> bool {
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    if let Some(constant) = schema.get("const") {
        return value == constant;
    }
    if let Some(schemas) = schema["anyOf"].as_array() {
        return schemas.iter().any(|schema| is_valid(schema, value));
    }
    let within = |number: i64, least: &str, most: &str| {
        schema[least].as_i64().is_none_or(|least| least <= number)
            && schema[most].as_i64().is_none_or(|most| number <= most)
    };
    match schema["type"].as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => {
            // -0 is an integer, too, which Rust's JSON reads as a float.
            let zero = value.as_f64().filter(|it| *it == 0.0).map(|_| 0);
            value.as_i64().or(zero).is_some_and(|it| within(it, "minimum", "maximum"))
        }
        "string" => value.as_str().is_some_and(|text| {
            let follows = |text: &str| {
                let Some((letters, digits)) = text.split_once('-') else { return false };
                (1..=3).contains(&letters.len())
                    && letters.bytes().all(|it| (b'a'..=b'c').contains(&it))
                    && digits.len() == 2
                    && digits.bytes().all(|it| it.is_ascii_digit())
            };
            within(text.chars().count() as i64, "minLength", "maxLength")
                && (schema.get("pattern").is_none() || follows(text))
        }),
        "array" => value.as_array().is_some_and(|items| {
            within(items.len() as i64, "minItems", "maxItems")
                && items.iter().all(|item| is_valid(&schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|fields| {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields.iter().all(|(name, value)| {
                    properties.get(name).is_some_and(|schema| is_valid(schema, value))
                })
        }),
        other => panic!("no schema is of type {other}"),
    }
}

#[test]
fn the_check_knows_what_is_wrong() {
    let schema = json!({
        "type": "object", "required": ["a"],
        "properties": {"a": {"type": "integer", "maximum": 3}, "b": {"type": "string",
            "pattern": "^[a-c]{1,3}-[0-9]{2}$"}},
    });
    assert!(is_valid(&schema, &json!({"a": 3, "b": "ab-07"})));
    for wrong in [json!({}), json!({"a": 4}), json!({"a": 1, "b": "d-07"}), json!({"a": 1, "c": 1})]
    {
        assert!(!is_valid(&schema, &wrong), "{wrong}");
    }
}

/// All that may not differ.
fn said(answer: &Value) -> String {
    let usage = &answer["usage"];
    json!([answer["choices"], usage["prompt_tokens"], usage["completion_tokens"]]).to_string()
}

async fn all(cluster: &Cluster, requests: &[Value]) -> Vec<Value> {
    // However many there are, they wait for each other here, and fit into the queue.
    let asked: Vec<_> = requests.iter().map(|request| cluster.complete(request)).collect();
    let limit = Duration::from_secs(500 + ANSWER * requests.len() as u64);
    let answers = stream::iter(asked).buffered(AT_ONCE).collect();
    tokio::time::timeout(limit, answers).await.expect("every answer ends")
}

/// Goal: every answer is what its schema says, the same over 1, 2 and 4 stages, given way or not,
/// also where a node is killed meanwhile; and answers that keep to nothing are what they were
/// alone, beside those that do.
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_what_its_schema_says_and_one_over_any_stages() {
    let number = |name: &str| std::env::var(name).ok().map(|num| num.parse().unwrap());
    let [num, first] = SCHEMAS.map(number);
    let first = first.unwrap_or(0);
    let numbers = first..first + num.unwrap_or(40);
    let [folder, texts] = MODEL.map(|name| std::env::var(name).ok());
    let has_texts = texts.is_none_or(|it| it == "1");
    let folder = folder.map_or(golden::fixture("glm4").join("f32"), PathBuf::from);
    let (schema, max_tokens): (fn(&mut Random, u32) -> Value, _) =
        if has_texts { (schema, 300) } else { (schema_of_numbers, 100) };
    check_all(&folder, schema, max_tokens, numbers).await;
}

/// The same of a model that was trained, which says what is likely.
#[tokio::test(flavor = "multi_thread")]
async fn a_trained_model_keeps_to_schemas_over_any_stages() {
    check_all(&golden::model("glass-en"), schema_of_numbers, 100, 0..16).await;
}

async fn check_all(
    folder: &Path,
    schema: fn(&mut Random, u32) -> Value,
    max_tokens: u32,
    numbers: Range<u64>,
) {
    let mut schemas: Vec<_> =
        numbers.clone().map(|i| schema(&mut Random::of(i), i as u32 % 5)).collect();
    for schema in &mut schemas {
        // The model's weights are random: it would write as much white space as it may.
        schema["x-guidance"] = json!({"whitespace_flexible": false});
    }
    let (mut expected, mut alone): (Vec<String>, Vec<String>) = Default::default();
    for (stages, config, is_killed) in
        [(1, "", false), (2, "", false), (2, SMALL, true), (4, "", false)]
    {
        let options = Options::new(folder).nodes(stages, stages).config(config);
        let cluster = Cluster::start(options).await;
        let mut requests = Vec::new();
        for (i, schema) in numbers.clone().zip(&schemas) {
            // Few are long: schemas are asked here, not prompts.
            let length = if i % 8 == 0 { 20 } else { 3 + i % 4 };
            let prompt: Vec<u32> = (0..length).map(|at| ((5 + at * 7 + i) % 500) as u32).collect();
            let format =
                json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
            let more = json!({
                "max_tokens": max_tokens, "temperature": i % 3, "seed": i, "logprobs": 2,
                "n": if i % 4 == 1 { 2 } else { 1 }, "response_format": format,
            });
            requests.push(cluster.request(&prompt, more).await);
        }
        let mut plain = Vec::new();
        for i in 0..8_usize {
            let prompt: Vec<u32> = (0..9 + i).map(|at| (6 + at * 5 + i) as u32 % 500).collect();
            let more = json!({
                "max_tokens": 24, "ignore_eos": true, "temperature": i % 2, "seed": i,
                "logprobs": 3,
            });
            plain.push(cluster.request(&prompt, more).await);
        }
        if alone.is_empty() {
            alone = all(&cluster, &plain).await.iter().map(said).collect();
        }
        let killed = async {
            if is_killed {
                tokio::time::sleep(Duration::from_secs(1)).await;
                signal(cluster.node_pids()[0], "KILL");
            }
        };
        let began = Instant::now();
        let (answers, beside, ()) =
            tokio::join!(all(&cluster, &requests), all(&cluster, &plain), killed);
        let seconds = began.elapsed().as_secs();
        assert_eq!(beside.iter().map(said).collect::<Vec<_>>(), alone, "{stages} stages");
        let (mut pairs, mut num_tokens) = (Vec::new(), 0);
        for (answer, schema) in answers.iter().zip(&schemas) {
            num_tokens += answer["usage"]["completion_tokens"].as_u64().unwrap();
            for choice in answer["choices"].as_array().unwrap() {
                let text = choice["text"].as_str().unwrap();
                assert_eq!(choice["finish_reason"], "stop", "{schema}: {text}");
                let value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
                assert!(is_valid(schema, &value), "{schema}: {text}");
                pairs.push((schema, value));
            }
        }
        check_by_jsonschema(&pairs);
        let answers: Vec<_> = answers.iter().map(said).collect();
        if expected.is_empty() {
            expected.clone_from(&answers);
        }
        assert_eq!(answers, expected, "{stages} stages, {config:?}");
        let num = pairs.len();
        println!("{stages} stages: {num} answers, each valid and as undisturbed");
        println!("schemas {numbers:?}: {num_tokens} tokens in {seconds} s");
        if config == SMALL {
            let metrics = cluster.get("/metrics").await.1;
            let lines = metrics.as_str().unwrap().lines();
            let preempted = lines.filter(|it| it.starts_with("autoglm_preempted_sequences_total"));
            let num = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            println!("{} gave way", preempted.map(num).sum::<f64>());
        }
        cluster.stop();
    }
}

/// The fixture with a chat template that has a place for tools, calls as Hermes has them, and
/// reasoning.
fn with_tools() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(golden::fixture("glm4").join("f32")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let template = "{# <tool_call> </think> #}{% for m in messages %}{{ m.content }}{% endfor %}\
                    {% if tools %}!{% endif %}{{ open }}";
    config["chat_template"] = template.into();
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

/// Goal: a call that must come comes, as such, also after reasoning that is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_must_be_called_is_called() {
    let model = with_tools();
    let cluster = Cluster::start(Options::new(model.path())).await;
    let parameters = json!({
        "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"], "additionalProperties": false,
        "x-guidance": {"whitespace_flexible": false},
    });
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    let named = json!({"type": "function", "function": {"name": "f"}});
    for choice in [json!("required"), named] {
        let request = json!({
            "model": cluster.model().await, "tools": tools, "tool_choice": choice, "seed": 3,
            "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60,
            "chat_template_kwargs": {"open": "<think></think>"},
        });
        let (status, answer) = cluster.post("/v1/chat/completions", &request).await;
        assert_eq!(status, 200, "{answer}");
        let message = &answer["choices"][0]["message"];
        let call = &message["tool_calls"][0]["function"];
        assert_eq!(call["name"], "f", "{answer}");
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["n"].as_u64().unwrap() <= 99, "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    }
    // The model's weights are random: it never stops to think.
    let request = json!({
        "model": cluster.model().await, "max_tokens": 30, "seed": 3, "temperature": 1,
        "messages": [{"role": "user", "content": "Hi"}],
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"open": "<think>"},
    });
    let (_, answer) = cluster.post("/v1/chat/completions", &request).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length", "{answer}");
    assert!(!choice["message"]["reasoning_content"].as_str().unwrap().starts_with('{'));
    cluster.stop();
}
