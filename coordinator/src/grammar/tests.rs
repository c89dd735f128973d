//! What grammars allow, asked with a vocabulary and answers that choose at random.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use checkpoint::Checkpoint;
use protocol::TokenId;
use protocol::config::Http;
use serde_json::{Map, Value, json};

use super::*;
use crate::parser::{AnswerFormat, CallFormat, Parser, Said};
use crate::request::{Constraint, Going, Request};
use crate::sequence::Sequence;
use crate::testing::request;

const END: TokenId = TokenId(595);

fn tokenizer() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/glm4/f32");
    let source = Checkpoint::open(&folder).unwrap().tokenizer().unwrap();
    Tokenizer::from_source(&source).unwrap()
}

impl Kept {
    /// Which tokens may come next.
    fn mask(&self) -> Option<Vec<u32>> {
        self.next()?.mask()
    }
}

/// Tokens of its own and what it makes of grammars.
struct Model {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    random: u64,
}

impl Model {
    fn new() -> Self {
        let tokenizer = tokenizer();
        let vocabulary = Vocabulary::new(&tokenizer, 640, &[END]).unwrap();
        Self { tokenizer, vocabulary, random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn keep(&self, source: &Source, begins: Begins) -> Kept {
        self.vocabulary.compile(source, begins, &Http::default()).unwrap()
    }

    /// One of the tokens that may come next.
    fn choose(&mut self, mask: &[u32]) -> TokenId {
        let allowed: Vec<u32> =
            (0..640).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
        if allowed.contains(&END.0) {
            return END;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        TokenId(allowed[self.random as usize % allowed.len()])
    }

    /// A whole answer; it ends where it may.
    fn answer(&mut self, source: &Source) -> String {
        let mut kept: Box<dyn Constraint> = Box::new(self.keep(source, Begins::First));
        let mut tokens = Vec::new();
        for _ in 0..4000 {
            let token = self.choose(&kept.next().unwrap().mask().unwrap());
            if token == END {
                break;
            }
            tokens.push(token);
            if kept.push(token).unwrap() == Going::Over {
                break;
            }
            // As for another choice.
            kept = kept.copy();
        }
        self.tokenizer.decode(&tokens, false)
    }
}

#[test]
fn answers_are_what_they_keep_to() {
    let mut model = Model::new();
    let schema = json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 99},
            "name": {"type": "string", "maxLength": 5},
            "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["kind", "count"],
        "additionalProperties": false,
    });
    for _ in 0..20 {
        let text = model.answer(&Source::Schema(schema.clone()));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        assert!(value["kind"] == "a" || value["kind"] == "b", "{text}");
        assert!((1..=99).contains(&value["count"].as_u64().unwrap()), "{text}");
        let text = model.answer(&Source::Regex("[0-9]{3}-[a-c]".into()));
        let (digits, letter) = text.split_once('-').unwrap();
        assert!(digits.len() == 3 && digits.parse::<u32>().is_ok() && "abc".contains(letter));
        let text = model.answer(&Source::Choice(vec!["yes".into(), "no".into()]));
        assert!(text == "yes" || text == "no", "{text}");
        let text = model.answer(&Source::Lark("start: \"<\" /[xy]/ \">\"".into()));
        assert!(text == "<x>" || text == "<y>", "{text}");
    }
}

#[test]
fn a_token_that_no_grammar_allows_is_an_error() {
    let model = Model::new();
    let mut kept = model.keep(&Source::Choice(vec!["yes".into()]), Begins::First);
    let no = model.tokenizer.encode("no", false).unwrap()[0];
    assert!(kept.push(no).is_err());
    assert!(kept.push(no).is_err(), "and stays one");
}

/// Goal: what is thought is free, what follows isn't. Method: a text is pushed token by token; what
/// is masked?
#[test]
fn an_answer_may_think_before_it_keeps_to_anything() {
    let model = Model::new();
    let source = Source::Choice(vec!["yes".into()]);
    let is_masked = |begins: Begins, text: &str| {
        let mut kept = model.keep(&source, begins);
        let mut masked = vec![kept.mask().is_some()];
        for token in model.tokenizer.encode(text, false).unwrap() {
            kept.push(token).unwrap();
            masked.push(kept.mask().is_some());
        }
        masked
    };
    let end = "</think>".to_owned();
    let masked = is_masked(Begins::After(end.clone()), "no </thin </think>");
    assert!(masked[..masked.len() - 1].iter().all(|masked| !masked), "{masked:?}");
    assert!(masked[masked.len() - 1]);
    assert_eq!(is_masked(Begins::First, ""), [true]);
    // A token of which an answer may begin to think, here one that no grammar has.
    let opening = model.tokenizer.special("<|user|>").unwrap();
    let mut kept = model.keep(&source, Begins::FirstOrAfter(opening, end.clone()));
    assert_eq!(kept.mask().unwrap()[opening.0 as usize / 32] >> (opening.0 % 32) & 1, 1);
    kept.push(opening).unwrap();
    assert!(kept.mask().is_none());
    let mut kept = model.keep(&source, Begins::FirstOrAfter(opening, end));
    let yes = model.tokenizer.encode("yes", false).unwrap();
    let going: Vec<_> = yes.iter().map(|token| kept.push(*token).unwrap()).collect();
    assert_eq!(going.last(), Some(&Going::Over));
}

/// Goal: what is made by the grammar of calls is read as calls, with arguments of their schema.
#[test]
fn calls_are_written_as_they_are_read() {
    let mut model = Model::new();
    let tools: Map<String, Value> = json!({
        "add": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 999},
                "unit": {"type": "string", "enum": ["m", "km"]},
                "flag": {"type": "boolean"},
            },
            "required": ["a", "unit"],
            "additionalProperties": false,
        },
        "now": {"type": "object", "additionalProperties": false},
    })
    .as_object()
    .unwrap()
    .clone();
    for format in [CallFormat::Json, CallFormat::NameThenJson, CallFormat::KeysAndValues] {
        for parallel in [false, true] {
            let calls = Calls { format, tools: tools.clone(), parallel, or: Or::Nothing };
            let mut num_added = 0;
            for _ in 0..20 {
                let text = model.answer(&Source::Calls(calls.clone()));
                let format = AnswerFormat { reasons: false, calls: Some(format) };
                let mut parser = Parser::new(format, tools.clone().into(), "");
                let mut said = parser.push(&text);
                said.extend(parser.finish());
                let Some(Said::Call(name)) = said.first() else { panic!("{text}: {said:?}") };
                let arguments: String = said[1..]
                    .iter()
                    .map(|said| match said {
                        Said::Arguments(more) => more.as_str(),
                        other => panic!("{text}: {other:?}"),
                    })
                    .collect();
                let arguments: Value = serde_json::from_str(&arguments).unwrap();
                if name == "add" {
                    num_added += 1;
                    assert!(arguments["a"].as_u64().is_some_and(|a| a <= 999), "{text}");
                    assert!(["m", "km"].iter().any(|it| arguments["unit"] == *it), "{text}");
                } else {
                    assert_eq!((name.as_str(), arguments), ("now", json!({})), "{text}");
                }
            }
            assert!(num_added > 0);
        }
    }
}

#[test]
fn an_answer_may_be_json_where_it_need_not_call() {
    let model = Model::new();
    let tools = Map::from_iter([("now".to_owned(), json!({"type": "object"}))]);
    let calls = Calls {
        format: CallFormat::Json,
        tools,
        parallel: true,
        or: Or::Json(json!({"type": "integer"})),
    };
    let kept = model.keep(&Source::Calls(calls), Begins::First);
    let first = |text: &str| {
        let token = model.tokenizer.encode(text, false).unwrap()[0].0;
        kept.mask().unwrap()[token as usize / 32] >> (token % 32) & 1 == 1
    };
    assert!(first("<tool_call>") && first("7") && !first("x"));
}

/// Goal: an answer that may call writes what it likes, and gets the arguments right once it calls.
/// Method: a text is pushed, then tokens are chosen at random until the call has ended.
#[test]
fn text_is_free_until_a_call_begins() {
    let schema = json!({
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
        "additionalProperties": false,
    });
    let tools = Map::from_iter([
        ("add".to_owned(), schema),
        ("add.up".to_owned(), json!({"type": "object", "additionalProperties": false})),
    ]);
    let text = "Let me <b>see</b> add, <tool_box>.\n";
    for (format, before, opening) in [
        (CallFormat::Json, text, "<tool_call>"),
        (CallFormat::KeysAndValues, text, "<tool_call>"),
        (CallFormat::NameThenJson, "", "add\n{"),
    ] {
        let mut model = Model::new();
        let calls = Calls { format, tools: tools.clone(), parallel: true, or: Or::Text };
        let source = Source::Calls(calls);
        let all: Vec<_> = model.tokenizer.encode(text, false).unwrap();
        let mut plain = model.keep(&source, Begins::First);
        for token in all {
            assert!(plain.mask().unwrap()[token.0 as usize / 32] >> (token.0 % 32) & 1 == 1);
            assert_eq!(plain.push(token), Ok(Going::On), "{format:?}");
        }
        let mask = plain.mask().unwrap();
        assert!(mask[END.0 as usize / 32] >> (END.0 % 32) & 1 == 1, "it may end");
        for _ in 0..20 {
            let mut kept = model.keep(&source, Begins::First);
            let begun = format!("{before}{opening}");
            let mut tokens = model.tokenizer.encode(&begun, false).unwrap();
            assert!(tokens.iter().all(|token| kept.push(*token) == Ok(Going::On)));
            let may_end =
                |kept: &Kept| kept.mask().unwrap()[END.0 as usize / 32] >> (END.0 % 32) & 1;
            while may_end(&kept) == 0 {
                let token = model.choose(&kept.mask().unwrap());
                tokens.push(token);
                if kept.push(token).unwrap() == Going::Over {
                    break;
                }
            }
            let text = model.tokenizer.decode(&tokens, false);
            let format = AnswerFormat { reasons: false, calls: Some(format) };
            let mut parser = Parser::new(format, tools.clone().into(), "");
            let mut said = parser.push(&text);
            said.extend(parser.finish());
            let at = said.iter().position(|it| matches!(it, Said::Call(_)));
            let arguments: String = said[at.unwrap_or_else(|| panic!("{text}: {said:?}")) + 1..]
                .iter()
                .filter_map(|it| match it {
                    Said::Arguments(more) => Some(more.as_str()),
                    _ => None,
                })
                .collect();
            let arguments: Value =
                serde_json::from_str(&arguments).unwrap_or_else(|_| panic!("{text}"));
            let expected = if said[at.unwrap()] == Said::Call("add".into()) {
                arguments["a"].as_u64().is_some_and(|a| a < 100)
            } else {
                arguments == json!({})
            };
            assert!(expected, "{text}");
        }
    }
}

/// Goal: who asks again waits for nothing, and what is kept is bounded. Method: three grammars
/// where two are kept; what is found again is what a new one would be.
#[test]
fn a_grammar_that_was_compiled_before_is_not_compiled_again() {
    let model = Model::new();
    let config = Http { max_kept_grammars: 2, ..Http::default() };
    let of = |text: &str| Source::Choice(vec![text.to_owned()]);
    let compile = |text: &str| {
        let mut kept = model.vocabulary.compile(&of(text), Begins::First, &config).unwrap();
        let token = model.tokenizer.encode(text, false).unwrap()[0];
        kept.push(token).unwrap();
        kept.mask().unwrap()
    };
    let first = compile("yes");
    assert_eq!(compile("yes"), first, "what one answer has said is not in another's state");
    compile("none");
    compile("yes");
    compile("maybe");
    let kept = model.vocabulary.compiled.lock().unwrap();
    let sources: Vec<_> = kept.iter().map(|(_, (source, _), _)| source.clone()).collect();
    assert_eq!(sources, [of("yes"), of("maybe")], "who asked last");
}

/// Goal: an answer that nobody can take further has failed, also where the model ends it. Method: a
/// vocabulary that lacks what the grammar needs next.
#[test]
fn an_answer_that_cannot_go_on_has_not_ended_well() {
    let words = [&b"a"[..], b"b", b"\xffend"].map(<[u8]>::to_vec);
    let end = TokenId(2);
    let vocabulary = Vocabulary::of(&words, &[end]).unwrap();
    let source = Source::Regex("ac".into());
    let kept = vocabulary.compile(&source, Begins::First, &Http::default()).unwrap();
    let asked =
        Request { constraint: Some(Box::new(kept)), stop_tokens: [end].into(), ..request(1, 1, 9) };
    let mut sequence = Sequence::new(1, &Arc::new(asked), 0, Instant::now());
    assert_eq!(sequence.accept(TokenId(0)).broken, None);
    assert_eq!(sequence.next().unwrap().mask(), None);
    let broken = sequence.accept(end).broken;
    assert!(broken.as_ref().is_some_and(|it| it.contains("no token of")), "{broken:?}");
}
