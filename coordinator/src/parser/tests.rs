use super::*;
use proptest::prelude::*;
use serde_json::json;

pub(super) const GLM45: AnswerFormat =
    AnswerFormat { reasons: true, calls: Some(CallFormat::KeysAndValues) };
pub(super) const GLM4: AnswerFormat =
    AnswerFormat { reasons: false, calls: Some(CallFormat::NameThenJson) };
pub(super) const HERMES: AnswerFormat =
    AnswerFormat { reasons: true, calls: Some(CallFormat::Json) };

fn tools() -> Tools {
    let weather = json!({"type": "object", "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["c", "f"]},
        "note": {"type": ["string", "null"]},
    }});
    let tools = [("get_weather", weather), ("get", json!({})), ("now", json!({}))];
    Arc::new(tools.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect())
}

/// All that an answer said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Whole {
    reasoning: String,
    content: String,
    pub(super) calls: Vec<(String, String)>,
}

impl Whole {
    fn take(&mut self, said: Vec<Said>) {
        for one in said {
            match one {
                Said::Reasoning(text) => self.reasoning += &text,
                Said::Content(text) => self.content += &text,
                Said::Call(name) => self.calls.push((name, String::new())),
                Said::Arguments(text) => self.calls.last_mut().unwrap().1 += &text,
            }
        }
    }
}

fn read_pieces<'a>(
    format: AnswerFormat,
    tools: &Tools,
    prompt_end: &str,
    pieces: impl IntoIterator<Item = &'a str>,
) -> Whole {
    let mut parser = Parser::new(format, Arc::clone(tools), prompt_end);
    let mut whole = Whole::default();
    for piece in pieces {
        whole.take(parser.push(piece));
    }
    whole.take(parser.finish());
    whole
}

/// What `text` says: the same whole, sign by sign, and cut in two at every place.
pub(super) fn read(format: AnswerFormat, tools: &Tools, prompt_end: &str, text: &str) -> Whole {
    let whole = read_pieces(format, tools, prompt_end, [text]);
    let signs = text.char_indices().map(|(at, sign)| &text[at..at + sign.len_utf8()]);
    assert_eq!(read_pieces(format, tools, prompt_end, signs), whole, "sign by sign: {text}");
    for (at, _) in text.char_indices() {
        let (one, other) = text.split_at(at);
        let cut = read_pieces(format, tools, prompt_end, [one, other]);
        assert_eq!(cut, whole, "cut at {at}: {text}");
    }
    whole
}

pub(super) fn said(reasoning: &str, content: &str, calls: &[(&str, &str)]) -> Whole {
    let calls = calls.iter().map(|(name, json)| ((*name).to_owned(), (*json).to_owned()));
    Whole { reasoning: reasoning.into(), content: content.into(), calls: calls.collect() }
}

const PARIS: &str = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>\
    <arg_key>days</arg_key><arg_value>3</arg_value></tool_call>";
const PARIS_JSON: &str = r#"{"city":"Paris","days":3}"#;

#[test]
fn answers_of_glm_4_5_and_later() {
    let paris = ("get_weather", PARIS_JSON);
    let lines = "\n<think>Let me see.</think>\nOne moment.\n<tool_call>get_weather\n\
        <arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n\
        <arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n";
    let cases = [
        (lines.to_owned(), said("Let me see.", "One moment.", &[paris])),
        (format!("{PARIS}{PARIS}"), said("", "", &[paris, paris])),
        (format!("{PARIS}\n{PARIS}\n"), said("", "", &[paris, paris])),
        (format!("a {PARIS} b"), said("", "ab", &[paris])),
        // A call without arguments, in all the ways to write it.
        ("<tool_call>now</tool_call>".into(), said("", "", &[("now", "{}")])),
        ("<tool_call>now\n</tool_call>".into(), said("", "", &[("now", "{}")])),
        ("<tool_call>\nnow\n</tool_call>".into(), said("", "", &[("now", "{}")])),
        // A tool that nobody has, as the client can say best.
        ("<tool_call>mcp__a-b.c</tool_call>".into(), said("", "", &[("mcp__a-b.c", "{}")])),
        // The end of the answer in place of the closing tag.
        (PARIS.replace("</tool_call>", ""), said("", "", &[paris])),
        ("<think>\n\nHm.\n\n</think>\n\n4".into(), said("Hm.", "4", &[])),
        ("<think></think>4".into(), said("", "4", &[])),
        ("<think>cut o".into(), said("cut o", "", &[])),
    ];
    for (text, expected) in cases {
        assert_eq!(read(GLM45, &tools(), "<|assistant|>", &text), expected, "{text}");
    }
}

#[test]
fn reasoning_that_the_prompt_has_opened_needs_no_tag() {
    let text = format!("Let me see.</think>Here:{PARIS}");
    let expected = said("Let me see.", "Here:", &[("get_weather", PARIS_JSON)]);
    assert_eq!(read(GLM45, &tools(), "<|assistant|><think>", &text), expected);
    assert_eq!(read(GLM45, &tools(), "<|assistant|>\n<think>\n", &text), expected);
    let text = format!("<think>{text}");
    let twice = read(GLM45, &tools(), "<think>", &text);
    assert_eq!(twice, expected, "what is opened twice is open");
    let closed = read(GLM45, &tools(), "<|assistant|></think>", "4");
    assert_eq!(closed, said("", "4", &[]));
}

#[test]
fn thoughts_may_quote_a_call_and_begin_one_too_early() {
    let read = |text: &str| read(GLM45, &tools(), "<think>", text);
    let quoted = "I write <tool_call>name\n with its arguments.</think>Yes";
    let expected = said("I write <tool_call>name\n with its arguments.", "Yes", &[]);
    assert_eq!(read(quoted), expected);
    let cut = "I write\n <tool_call>na";
    assert_eq!(read(cut), said(cut, "", &[]));
    let early = format!("Let me see. {PARIS}");
    assert_eq!(read(&early), said("Let me see.", "", &[("get_weather", PARIS_JSON)]));
    let goes_on = format!("a{PARIS}b</think>c");
    assert_eq!(read(&goes_on), said("ab", "c", &[("get_weather", PARIS_JSON)]));
}

#[test]
fn without_tools_and_tags_an_answer_stays_as_it_is() {
    let none = Tools::default();
    for text in ["  \n a\n\n b \n", PARIS, "\n", "", "</think>", "a <think>b</think>", "<thi"] {
        for format in [GLM45, GLM4, HERMES, AnswerFormat::default()] {
            assert_eq!(read(format, &none, "", text), said("", text, &[]), "{text:?}");
        }
    }
    for text in [" a ", "get_wea", "<tool_call>", "<tool_call>get_wea", "a <b> c", "now or never"] {
        for format in [GLM45, GLM4, HERMES] {
            let whole = read(format, &tools(), "", text);
            assert_eq!(whole, said("", text, &[]), "{text:?} of {format:?}");
        }
    }
}

#[test]
fn values_are_what_the_schema_says() {
    let call = |key: &str, value: &str| {
        let argument = format!("<arg_key>{key}</arg_key><arg_value>{value}</arg_value>");
        let text = format!("<tool_call>get_weather{argument}</tool_call>");
        let whole = read(GLM45, &tools(), "", &text);
        serde_json::from_str::<Value>(&whole.calls[0].1).unwrap()[key].clone()
    };
    let cases = [
        ("city", "12", json!("12")),
        ("city", "a \"b\"\n\\c\u{1}é", json!("a \"b\"\n\\c\u{1}é")),
        ("city", "</tool_call><arg_key>", json!("</tool_call><arg_key>")),
        ("city", " \n", json!(" \n")),
        ("unit", "true", json!("true")),
        ("days", "12", json!(12)),
        ("days", "twelve", json!("twelve")),
        ("note", "null", json!(null)),
        ("note", "12", json!("12")),
        ("other", " [1, {\"a\": 2}] ", json!([1, {"a": 2}])),
        ("other", "plain", json!("plain")),
        ("other", "", json!("")),
    ];
    for (key, value, expected) in cases {
        assert_eq!(call(key, value), expected, "{key} = {value:?}");
    }
}

#[test]
fn what_a_model_gets_wrong_loses_nothing_else() {
    let read = |text: &str| read(GLM45, &tools(), "", text);
    let no_key_tag = PARIS.replacen("<arg_key>", "", 1);
    let no_key_tag = no_key_tag.replacen("get_weather", "get_weather\n", 1);
    assert_eq!(read(&no_key_tag), said("", "", &[("get_weather", PARIS_JSON)]));
    let key_twice = PARIS.replace("days", "city");
    assert_eq!(read(&key_twice), said("", "", &[("get_weather", r#"{"city":"Paris"}"#)]));
    let long = format!("<tool_call>{} b", "a".repeat(300));
    assert_eq!(read(&long), said("", &long, &[]));
    let cut = &PARIS[..PARIS.find("ris<").unwrap()];
    assert_eq!(read(cut), said("", "", &[("get_weather", r#"{"city":"Pa"#)]), "as it was cut off");
}

#[test]
fn the_name_comes_whole_and_the_arguments_as_they_are_written() {
    let mut parser = Parser::new(GLM45, tools(), "");
    assert_eq!(parser.push("<tool_call>get_we"), []);
    let name = Said::Call("get_weather".into());
    assert_eq!(parser.push("ather\n"), [name], "before there are arguments");
    parser.push("<arg_key>city</arg_key><arg_value>");
    assert_eq!(parser.push("A long"), [Said::Arguments("A long".into())], "text at once");
    assert_eq!(parser.push(" one<"), [Said::Arguments(" one".into())], "but for a tag's beginning");
}

#[test]
fn answers_of_glm_4_are_a_name_and_json() {
    let call = r#"{"city": "Paris {", "days": [3]}"#;
    let read = |text: &str| read(GLM4, &tools(), "<|assistant|>", text);
    let expected = said("", "", &[("get_weather", call)]);
    assert_eq!(read(&format!("get_weather\n{call}")), expected);
    assert_eq!(read(&format!("\nget_weather\n {call}\n")), expected);
    let two = said("", "", &[("get_weather", call), ("now", "{}")]);
    assert_eq!(read(&format!("get_weather\n{call}\nnow\n{{}}")), two);
    assert_eq!(read("get_weatherman {}"), said("", "get_weatherman {}", &[]));
    assert_eq!(read("unknown\n{}"), said("", "unknown\n{}", &[]));
}

#[test]
fn answers_of_hermes_are_json_in_tags() {
    let read = |text: &str| read(HERMES, &tools(), "<|im_start|>assistant\n", text);
    let call = r#"{"city": "</tool_call>", "days": 3}"#;
    let usual =
        format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {call}}}\n</tool_call>");
    let expected = said("", "", &[("get_weather", call)]);
    assert_eq!(read(&usual), expected);
    assert_eq!(read(&usual.replace("arguments", "parameters")), expected);
    assert_eq!(read(&usual.replace("\n</tool_call>", "")), expected, "the end closes it");
    assert_eq!(read(&format!("Hm.\n{usual}\n{usual}")).calls.len(), 2);
    let odd = r#"<tool_call>{"arguments": {"a": 1}, "name": "get"}</tool_call>"#;
    assert_eq!(read(odd), said("", "", &[("get", r#"{"a":1}"#)]), "in another order");
    let text = r#"<tool_call>{"name": "get", "arguments": "{\"a\": 1}"}</tool_call>"#;
    assert_eq!(read(text), said("", "", &[("get", r#"{"a":1}"#)]), "as text");
    let none = r#"<tool_call>{"name": "now"}</tool_call>"#;
    assert_eq!(read(none), said("", "", &[("now", "{}")]));
    for broken in ["<tool_call>{\"name\": }</tool_call>", "<tool_call>[]</tool_call>!"] {
        assert_eq!(read(broken), said("", broken, &[]), "no call, nothing lost");
    }
    let thought = format!("<think>a</think>{usual}");
    assert_eq!(read(&thought), said("a", "", &[("get_weather", call)]));
}

#[test]
fn the_format_is_in_the_template() {
    let of = AnswerFormat::of_template;
    assert_eq!(of("<|user|>{{x}}<think></think> <tool_call><arg_key>"), GLM45);
    assert_eq!(of("[gMASK]<sop><|observation|>"), GLM4);
    assert_eq!(of("<|im_start|> <tool_call> </think>"), HERMES);
    assert_eq!(of("<|im_start|>").calls, Some(CallFormat::Json));
    assert_eq!(of("{{ messages }}"), AnswerFormat::default());
}

fn text() -> impl Strategy<Value = String> {
    let parts = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "get_weather",
        "get",
        "now",
        "city",
        "days",
        "\n",
        " ",
        "3",
        "\"",
        "{",
        "}",
        "{\"name\": \"now\", \"arguments\": ",
        "{\"name\"",
        "é",
        "<",
        "Paris",
        "<tool_call>get_weather\n<arg_key>city</arg_key><arg_value>",
        "\\",
        ":",
        ",",
    ];
    proptest::collection::vec(proptest::sample::select(parts.to_vec()), 0..24)
        .prop_map(|parts| parts.concat())
}

/// `AUTOGLM_CUTS=100000 cargo test -p coordinator --lib any_cut` takes a minute or two.
fn num_cuts() -> u32 {
    std::env::var("AUTOGLM_CUTS").map_or(4096, |number| number.parse().expect("a number"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(num_cuts()))]
    /// Goal: no fault of chunking, of which most reports are. Method: texts of all that means
    /// something, cut at random; and no text panics.
    #[test]
    fn any_cut_says_the_same(text in text(), sizes in proptest::collection::vec(1usize..9, 200)) {
        same_however_cut(&text, sizes)?;
    }
}

fn same_however_cut(text: &str, sizes: Vec<usize>) -> Result<(), TestCaseError> {
    let mut sizes = sizes.into_iter();
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let signs = sizes.next().unwrap_or(1);
        let at = rest.char_indices().nth(signs).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(at);
        pieces.push(piece);
        rest = after;
    }
    for format in [GLM45, GLM4, HERMES] {
        for prompt_end in ["", "<think>"] {
            let whole = read_pieces(format, &tools(), prompt_end, [text]);
            let cut = read_pieces(format, &tools(), prompt_end, pieces.iter().copied());
            prop_assert_eq!(&cut, &whole, "{:?} {:?}", format, pieces);
        }
    }
    Ok(())
}
