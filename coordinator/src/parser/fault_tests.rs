//! The faults that users of GLM's tools and thoughts have reported of servers, in our words: each a
//! text as models write it and what it says. `read` cuts it at every place.

use serde_json::{Value, json};

use super::tests::{GLM4, GLM45, HERMES, Whole, read, said};
use super::*;

/// Tools whose names and arguments are as trying as those of agents.
fn tools() -> Tools {
    let any_of = json!([{"type": "string"}, {"type": "null"}]);
    let edit = json!({"type": "object", "properties": {
        "path": {"type": "string"},
        "old": {"type": "string"},
        "line": {"type": "integer"},
        "all": {"type": "boolean"},
        "tags": {"type": "array"},
        "kind": {"anyOf": any_of},
        "options": {"type": "object"},
    }});
    let tools = [
        ("run", json!({})),
        ("run_in", json!({})),
        (
            "run_in_terminal",
            json!({"type": "object", "properties": {
                "command": {"type": "string"},
            }}),
        ),
        ("edit", edit),
        ("now", json!({})),
        ("mcp__files-1.list", json!({})),
    ];
    Arc::new(tools.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect())
}

/// A call as GLM-4.7 and later write it.
fn call(name: &str, arguments: &[(&str, &str)]) -> String {
    let pair = |(key, value): &(&str, &str)| {
        format!("<arg_key>{key}</arg_key><arg_value>{value}</arg_value>")
    };
    let pairs: String = arguments.iter().map(pair).collect();
    format!("<tool_call>{name}{pairs}</tool_call>")
}

/// The same as GLM-4.5 and 4.6 do.
fn in_lines(name: &str, arguments: &[(&str, &str)]) -> String {
    call(name, arguments)
        .replace("<arg_", "\n<arg_")
        .replace("</tool_call>", "\n</tool_call>")
        .replace("<tool_call>", "\n<tool_call>")
}

/// What was reported, and what stands in its place.
struct Fault {
    name: &'static str,
    format: Format,
    has_tools: bool,
    prompt_end: &'static str,
    text: String,
    says: Whole,
}

fn fault(name: &'static str, text: impl Into<String>, says: Whole) -> Fault {
    let text = text.into();
    Fault { name, format: GLM45, has_tools: true, prompt_end: "<|assistant|>", text, says }
}

fn faults() -> Vec<Fault> {
    let terminal = r#"{"command":"ls -l"}"#;
    let ls = call("run_in_terminal", &[("command", "ls -l")]);
    let edit = |key: &str, value: &str, json: &str| {
        let arguments = format!("{{\"{key}\":{json}}}");
        (call("edit", &[(key, value)]), said("", "", &[("edit", &arguments)]))
    };
    let (number, as_text) = edit("old", "12", "\"12\"");
    let (nullable, with_quotes) = edit("kind", "Pura90", "\"Pura90\"");
    let (null, is_null) = edit("kind", "null", "null");
    let (tags, is_list) = edit("tags", "[\"a\", {\"b\": 1}]", "[\"a\", {\"b\": 1}]");
    let (html, is_html) = edit("old", "<div>a</div> </tool_call>", "\"<div>a</div> </tool_call>\"");
    let code = "\tif a < \"b\\n\":\n\n        c\n";
    let (code, is_code) = edit("old", code, &Value::from(code).to_string());
    let (signs, is_signs) = edit("old", "naïve 😀 中文", "\"naïve 😀 中文\"");
    let quoted = "I could write <tool_call>name</tool_call> here.";
    vec![
        fault(
            "a name that begins like another is cut short",
            &ls,
            said("", "", &[("run_in_terminal", terminal)]),
        ),
        fault(
            "a short name is taken for a longer one",
            call("run", &[]),
            said("", "", &[("run", "{}")]),
        ),
        fault(
            "a call without arguments is dropped from a stream",
            "<tool_call>now</tool_call>",
            said("", "", &[("now", "{}")]),
        ),
        fault(
            "what follows a call without arguments loses its own",
            call("now", &[]) + &ls,
            said("", "", &[("now", "{}"), ("run_in_terminal", terminal)]),
        ),
        fault(
            "a call over lines is another format",
            in_lines("run_in_terminal", &[("command", "ls -l")]),
            said("", "", &[("run_in_terminal", terminal)]),
        ),
        fault(
            "calls that come in one piece become one",
            format!("{ls}{ls}"),
            said("", "", &[("run_in_terminal", terminal); 2]),
        ),
        fault(
            "the white space between calls is an answer",
            format!("\n{ls}\n\n{ls}\n"),
            said("", "", &[("run_in_terminal", terminal); 2]),
        ),
        fault(
            "text before a call is told twice or lost",
            format!("I look.\n{ls}"),
            said("", "I look.", &[("run_in_terminal", terminal)]),
        ),
        Fault {
            has_tools: false,
            ..fault(
                "text is doubled or held where a request has no tools",
                "a <tool_call>b</tool_call> c",
                said("", "a <tool_call>b</tool_call> c", &[]),
            )
        },
        Fault {
            prompt_end: "<think>",
            ..fault(
                "a call within thoughts leaks into them",
                format!("Hm. {ls}"),
                said("Hm.", "", &[("run_in_terminal", terminal)]),
            )
        },
        Fault {
            prompt_end: "<think>",
            ..fault(
                "a call that thoughts only quote is made",
                format!("{quoted}</think>No."),
                said(quoted, "No.", &[]),
            )
        },
        Fault {
            prompt_end: "<|assistant|><think>",
            ..fault(
                "thoughts that the prompt has opened are an answer",
                "Hm.</think>4",
                said("Hm.", "4", &[]),
            )
        },
        Fault {
            prompt_end: "<|assistant|></think>",
            ..fault("an answer without thoughts is taken for thoughts", "4", said("", "4", &[]))
        },
        Fault {
            prompt_end: "<|assistant|><think>",
            ..fault(
                "thoughts that open once more, as the prompt has, keep the tag",
                "<think>Hm.</think>4",
                said("Hm.", "4", &[]),
            )
        },
        Fault {
            prompt_end: "<think>",
            ..fault(
                "a tag that opens thoughts within them begins others",
                "Hm. <think>And so.</think>4",
                said("Hm. <think>And so.", "4", &[]),
            )
        },
        fault(
            "a second thought, behind an answer, is none",
            "<think>a</think>b<think>c</think>d",
            said("a", "b<think>c</think>d", &[]),
        ),
        Fault {
            prompt_end: "<think>",
            ..fault(
                "thoughts that end twice are cut short",
                "a</think></think>b",
                said("a", "b", &[]),
            )
        },
        Fault {
            prompt_end: "<think>",
            ..fault("thoughts that are cut off are an answer", "Hm. And", said("Hm. And", "", &[]))
        },
        fault(
            "an empty thought leaves its line ends behind",
            "\n<think></think>\n\n4",
            said("", "4", &[]),
        ),
        fault("a text that looks like a number becomes one", number, as_text),
        fault("a text that may be null lacks its quotes", nullable, with_quotes),
        fault("null becomes a text", null, is_null),
        fault(
            "numbers and truth become texts",
            call("edit", &[("line", "12"), ("all", "true")]),
            said("", "", &[("edit", r#"{"line":12,"all":true}"#)]),
        ),
        fault("lists and objects become texts", tags, is_list),
        fault("tags within a value end it", html, is_html),
        fault("line ends, quotes and indents of code are lost", code, is_code),
        fault("signs of several bytes are broken", signs, is_signs),
        fault(
            "a name with other signs than letters is refused",
            call("mcp__files-1.list", &[]),
            said("", "", &[("mcp__files-1.list", "{}")]),
        ),
        fault(
            "a call whose closing tag is missing is dropped",
            ls.replace("</tool_call>", ""),
            said("", "", &[("run_in_terminal", terminal)]),
        ),
        fault(
            "a key whose tag is missing takes the others with it",
            call("edit", &[("line", "1"), ("all", "true")]).replacen("edit<arg_key>", "edit\n", 1),
            said("", "", &[("edit", r#"{"line":1,"all":true}"#)]),
        ),
        fault(
            "a sign that might begin a tag is held for ever",
            "1 < 2 <tool",
            said("", "1 < 2 <tool", &[]),
        ),
        Fault {
            format: GLM4,
            ..fault(
                "a call without tags is an answer",
                "run_in_terminal\n{\"command\": \"ls\"}",
                said("", "", &[("run_in_terminal", "{\"command\": \"ls\"}")]),
            )
        },
        Fault {
            format: HERMES,
            ..fault(
                "arguments that contain a closing tag end there",
                "<tool_call>\n{\"name\": \"run\", \"arguments\": {\"a\": \"</tool_call>\"}}\n\
                 </tool_call>",
                said("", "", &[("run", "{\"a\": \"</tool_call>\"}")]),
            )
        },
    ]
}

#[test]
fn what_was_reported_of_others_does_not_happen_here() {
    let faults = faults();
    assert!(faults.len() >= 24);
    for Fault { name, format, has_tools, prompt_end, text, says } in faults {
        let tools = if has_tools { tools() } else { Tools::default() };
        assert_eq!(read(format, &tools, prompt_end, &text), says, "{name}: {text:?}");
        for (_, arguments) in &says.calls {
            serde_json::from_str::<Value>(arguments).unwrap_or_else(|_| panic!("{name}"));
        }
    }
}

/// Goal: a stream says what it knows. Method: a call comes sign by sign; its name comes whole and
/// before its arguments, and those of a text come as they are written.
#[test]
fn calls_are_streamed_as_they_are_written() {
    let text = call("run_in_terminal", &[("command", "echo one two three")]);
    let mut parser = Parser::new(GLM45, tools(), "");
    let said: Vec<_> = text.chars().flat_map(|sign| parser.push(&sign.to_string())).collect();
    assert_eq!(said[0], Said::Call("run_in_terminal".into()));
    assert!(said[1..].iter().all(|it| matches!(it, Said::Arguments(_))), "{said:?}");
    assert!(said.len() > 15, "as it is written: {said:?}");
}
