//! The faults that users of GLM's tools and thoughts have reported of servers, in our words: each a
//! text as models write it and what it says. `read` cuts it at every place. The kinds, and what
//! holds each, which is here where nothing else is said:
//!
//!  1. A name is cut where it begins like another.
//!  2. A call without arguments is dropped, or breaks the reader.
//!  3. What follows a call without arguments loses its own.
//!  4. Arguments are lost where several tokens come at once (and `any_cut_says_the_same`).
//!  5. Arguments are encoded twice, or texts that are JSON once less.
//!  6. Numbers, truth, null and lists become texts, or the reverse.
//!  7. Only the first argument is read.
//!  8. JSON is cut short, or two objects follow each other in one call.
//!  9. Calls that come together become one, or the second is text.
//! 10. A call in thoughts is none, while the answer's end says that there is one
//!     (and `http/agents_tests.rs`: `a_call_in_thoughts_is_one_in_every_api`).
//! 11. A call that thoughts quote is made.
//! 12. Thoughts that the prompt has opened are an answer, in later turns too
//!     (and `http/agents_tests.rs`: two turns of each client).
//! 13. An answer without thoughts is taken for them.
//! 14. Thoughts open or close more often than once.
//! 15. Text is told twice where a parser is on and a request has no tools.
//! 16. Text before, between or behind calls is lost, or told twice.
//! 17. Tags of the format are missing, doubled or astray, and tear the call.
//! 18. Tags within a value end it; line ends, quotes, indents, signs of several bytes are broken.
//! 19. Nothing is told before a call is whole: `calls_are_streamed_as_they_are_written`.
//! 20. A call has its id, type or name never, or with each piece: `openai/answer/tests.rs`,
//!     `a_streamed_call_has_its_name_whole_and_first`.
//! 21. A stream of Responses or Messages breaks off where a call begins: `openai/answer/tests.rs`,
//!     `the_events_of_a_response_are_numbered_and_end_with_the_whole`,
//!     `the_events_of_a_message_build_it`.
//! 22. A call that must come is forced into JSON that the model doesn't write: `grammar/tests.rs`,
//!     `calls_are_written_as_they_are_read`.
//! 23. What agents send back (arguments as text, no content, results in parts) spoils the prompt:
//!     `openai/tools.rs`, `turns_are_shown_as_they_were_written`.
//! 24. Tokens that end a turn are shown: `text.rs`, `the_pieces_are_the_whole`.

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
    format: AnswerFormat,
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
    let (json_text, is_json_text) = edit("old", r#"{"a": "b"}"#, r#""{\"a\": \"b\"}""#);
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
            "a key whose tag is missing becomes part of the name",
            "<tool_call>run_in_terminalcommand</arg_key><arg_value>ls -l</arg_value></tool_call>",
            said("", "", &[("run_in_terminal", terminal)]),
        ),
        fault(
            "a key whose tag is missing, behind a space, makes text of the call",
            call("edit", &[("line", "1"), ("all", "true")]).replacen("edit<arg_key>", "edit ", 1),
            said("", "", &[("edit", r#"{"line":1,"all":true}"#)]),
        ),
        fault(
            "a value whose tag is missing is lost",
            call("edit", &[("old", "a  b"), ("line", "1")]).replacen("<arg_value>", "", 1),
            said("", "", &[("edit", r#"{"old":"a  b","line":1}"#)]),
        ),
        fault(
            "a value that has no tags is lost",
            "<tool_call>run_in_terminal<arg_key>command</arg_key>ls -l</tool_call>",
            said("", "", &[("run_in_terminal", terminal)]),
        ),
        fault(
            "a tag without a beginning becomes part of the name",
            "<tool_call>now</arg_value></tool_call>",
            said("", "", &[("now", "{}")]),
        ),
        fault(
            "a tag that opens calls stands where a key's should, and makes text of the call",
            ls.replace("<arg_key>", "<tool_call>"),
            said("", "", &[("run_in_terminal", terminal)]),
        ),
        fault(
            "a call that nothing closes takes the next one with it",
            format!("<tool_call>now{}", call("edit", &[("line", "1")]).replace(END_OF_CALL, ""))
                + &ls,
            said(
                "",
                "",
                &[("now", "{}"), ("edit", r#"{"line":1}"#), ("run_in_terminal", terminal)],
            ),
        ),
        fault(
            "tags that close calls once more are an answer",
            format!("{ls}{END_OF_CALL}\n{END_OF_CALL}{ls}{END_OF_CALL} Done."),
            said("", "Done.", &[("run_in_terminal", terminal); 2]),
        ),
        fault(
            "a call behind a tag that is only quoted is lost",
            format!("With <tool_call> as here. {ls}"),
            said("", "With <tool_call> as here.", &[("run_in_terminal", terminal)]),
        ),
        fault(
            "text behind calls is lost",
            format!("{ls}\n\nDone."),
            said("", "Done.", &[("run_in_terminal", terminal)]),
        ),
        fault("text that is JSON is encoded once less, or once more", json_text, is_json_text),
        fault(
            "only the first of several arguments is read",
            in_lines("edit", &[("path", "a.rs"), ("line", "7"), ("all", "false"), ("old", "")]),
            said("", "", &[("edit", r#"{"path":"a.rs","line":7,"all":false,"old":""}"#)]),
        ),
        fault(
            "a key that comes twice makes JSON that readers understand in two ways",
            call("edit", &[("line", "7"), ("line", "8")]),
            said("", "", &[("edit", r#"{"line":7}"#)]),
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
