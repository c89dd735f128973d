use super::*;
use crate::events::More;
use crate::openai::testing::Served;
use crate::openai::tools::Reading;
use crate::openai::{parse_chat, parse_completion};
use crate::parser::{CallFormat, Format, Parser};
use crate::testing::sentencepiece;
use protocol::TokenLogprob;

impl Answer {
    fn hear(&mut self, number: usize, event: Event) -> Option<Value> {
        let chunk = self.take(Heard { number, event, more: More::default() });
        chunk.map(|text| json(&text))
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn answer(style: Style, more: Value) -> (Answer, Served) {
    let served = Served::chat();
    let mut body = match style {
        Style::Chat => json!({"messages": [{"role": "user", "content": "Hi"}]}),
        Style::Completion => json!({"prompt": [39, 72]}),
    };
    body["model"] = "m".into();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let parse = if style == Style::Chat { parse_chat } else { parse_completion };
    let parsed = parse(body.to_string().as_bytes(), served.context()).unwrap();
    let fingerprint = "fp".to_owned();
    let tokenizer = Arc::clone(&served.tokenizer);
    (Answer::new(style, 10, "m".into(), fingerprint, &parsed, tokenizer), served)
}

fn token(choice: u32, token: u32, text: &str) -> Event {
    Event::Token { choice, token: TokenId(token), logprobs: None, text: text.into() }
}

fn scored(token: u32, logprob: f32) -> Logprobs {
    let chosen = TokenLogprob { token: TokenId(token), logprob };
    Logprobs { chosen, top: vec![TokenLogprob { token: TokenId(3), logprob: -0.25 }, chosen] }
}

fn finished(choice: u32, text: &str) -> Event {
    Event::Finished { choice, reason: FinishReason::Stop, text: text.into() }
}

#[test]
fn a_whole_chat_is_openais_object() {
    let (mut answer, _) = answer(Style::Chat, json!({"return_token_ids": true}));
    let num_prompt = answer.num_prompt_tokens();
    assert_eq!(answer.hear(0, token(0, 39, "H")), None);
    assert_eq!(answer.hear(0, token(0, 72, "")), None);
    assert!(!answer.is_complete());
    answer.hear(0, finished(0, "i"));
    assert!(answer.is_complete());
    let created = answer.created;
    let prompt: Vec<u32> = answer.prompts[0].ids.iter().map(|token| token.0).collect();
    let expected = json!({
        "id": "chatcmpl-000000000000000a", "object": "chat.completion", "created": created,
        "model": "m", "system_fingerprint": "fp",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "Hi", "refusal": null},
            "logprobs": null, "finish_reason": "stop", "token_ids": [39, 72],
        }],
        "usage": {
            "prompt_tokens": num_prompt, "completion_tokens": 2,
            "total_tokens": num_prompt + 2,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "prompt_token_ids": prompt,
    });
    assert_eq!(json(&answer.finish()), expected);
}

#[test]
fn a_streamed_chat_says_who_speaks_then_what_then_why_it_ends() {
    let more = json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2});
    let (mut answer, _) = answer(Style::Chat, more);
    let opening: Vec<_> = answer.opening().iter().map(|text| json(text)).collect();
    assert_eq!(opening.len(), 2);
    assert_eq!(opening[1]["choices"][0]["index"], 1);
    let delta = json!({"role": "assistant", "content": ""});
    assert_eq!(opening[0]["choices"][0]["delta"], delta);
    assert_eq!(opening[0]["object"], "chat.completion.chunk");
    assert_eq!(opening[0]["usage"], Value::Null);
    let chunk = answer.hear(0, token(1, 39, "H")).unwrap();
    let expected = json!([{
        "index": 1, "delta": {"content": "H"}, "logprobs": null, "finish_reason": null,
    }]);
    assert_eq!(chunk["choices"], expected);
    assert_eq!(answer.hear(0, token(0, 39, "")), None, "half a character is not a chunk");
    let chunk = answer.hear(0, finished(1, "")).unwrap();
    let expected = json!([{"index": 1, "delta": {}, "logprobs": null, "finish_reason": "stop"}]);
    assert_eq!(chunk["choices"], expected);
    assert!(!answer.is_complete(), "the other choice runs");
    answer.hear(0, finished(0, "")).unwrap();
    assert!(answer.is_complete());
    let closing = json(&answer.closing().unwrap());
    assert_eq!(closing["choices"], json!([]));
    assert_eq!(closing["usage"]["completion_tokens"], 2);
}

#[test]
fn each_chunk_has_the_counts_so_far_where_that_is_wanted() {
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let (mut answer, _) = answer(Style::Chat, json!({"stream": true, "stream_options": options}));
    let num_prompt = answer.num_prompt_tokens();
    assert_eq!(json(&answer.opening()[0])["usage"]["completion_tokens"], 0);
    for num_generated in 1..=3 {
        let chunk = answer.hear(0, token(0, 39, "H")).unwrap();
        assert_eq!(chunk["usage"]["completion_tokens"], num_generated);
        assert_eq!(chunk["usage"]["total_tokens"], num_prompt + num_generated);
    }
}

/// A tokenizer that puts a space in front of every text: the echo has none, nor have offsets.
#[test]
fn an_echo_and_its_offsets_are_those_of_the_text_that_was_sent() {
    let tokens = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("▁hi", 1, 0.0), ("▁time", 1, 0.0)];
    let tokenizer = Arc::new(Tokenizer::from_source(&sentencepiece(&tokens)).unwrap());
    let (mut answer, _) = answer(Style::Completion, json!({"logprobs": 0}));
    answer.tokenizer = Arc::clone(&tokenizer);
    answer.prompts[0].ids = [1, 2].map(TokenId).into();
    answer.prompts[0].echo = Some(Echo { text: "hi".into(), tokens: 1..2 });
    let mut text =
        crate::text::TextStream::new(tokenizer, Arc::new([])).after(&answer.prompts[0].ids);
    let piece = text.push(TokenId(3)).text;
    answer.hear(0, token(0, 3, &piece));
    answer.hear(0, finished(0, &text.finish()));
    let body = json(&answer.finish());
    assert_eq!(body["choices"][0]["text"], "hi time");
    assert_eq!(body["choices"][0]["logprobs"]["text_offset"], json!([0, 2]));
}

#[test]
fn choices_of_several_prompts_are_numbered_one_after_another() {
    let (mut answer, _) = answer(Style::Completion, json!({"prompt": [[39], [72]], "n": 2}));
    assert_eq!(answer.num_prompt_tokens(), 2, "each prompt once");
    answer.hear(1, token(0, 39, "third"));
    for (request, choice) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        answer.hear(request, finished(choice, ""));
    }
    assert_eq!(json(&answer.finish())["choices"][2]["text"], "third");
}

#[test]
fn an_echoed_prompt_comes_first_also_when_nothing_follows() {
    let echo = json!({"echo": true, "return_token_ids": true});
    let (mut whole, _) = answer(Style::Completion, echo.clone());
    whole.hear(0, token(0, 75, "l"));
    whole.hear(0, finished(0, ""));
    let whole = json(&whole.finish());
    assert_eq!(whole["choices"][0]["text"], "Hil");
    assert_eq!(whole["choices"][0]["token_ids"], json!([75]));
    assert_eq!(whole["choices"][0]["prompt_token_ids"], json!([39, 72]));

    let (mut streamed, _) = answer(Style::Completion, json!({"echo": true, "stream": true}));
    let chunk = streamed.hear(0, finished(0, "")).unwrap();
    assert_eq!(chunk["choices"][0]["text"], "Hi");
    assert_eq!(chunk["choices"][0]["finish_reason"], "stop");
}

#[test]
fn logprobs_of_prompt_and_answer_stand_in_one_list() {
    let more = json!({"echo": true, "logprobs": 2});
    let events = [
        Event::Prompt(vec![scored(72, -1.5)]),
        Event::Token {
            choice: 0,
            token: TokenId(75),
            logprobs: Some(scored(75, f32::NEG_INFINITY)),
            text: "l".into(),
        },
        finished(0, ""),
    ];
    let (mut whole, served) = answer(Style::Completion, more.clone());
    for event in events.clone() {
        whole.hear(0, event);
    }
    let whole = json(&whole.finish())["choices"][0]["logprobs"].clone();
    let name = |id| served.tokenizer.token_text(TokenId(id));
    let mut second = json!({"i": -1.5});
    second[name(3)] = json!(-0.25);
    let mut third = json!({"l": -9999.0});
    third[name(3)] = json!(-0.25);
    let expected = json!({
        "tokens": ["H", "i", "l"],
        "token_logprobs": [null, -1.5, -9999.0],
        "top_logprobs": [null, second, third],
        "text_offset": [0, 1, 2],
    });
    assert_eq!(whole, expected);

    // In pieces it is the same.
    let mut more = more;
    more["stream"] = true.into();
    more["return_tokens_as_token_ids"] = true.into();
    let (mut streamed, _) = answer(Style::Completion, more);
    let chunks: Vec<_> = events.into_iter().filter_map(|e| streamed.hear(0, e)).collect();
    let offsets = &chunks[0]["choices"][0]["logprobs"]["text_offset"];
    assert_eq!(*offsets, json!([0, 1, 2]));
    let tops = &chunks[0]["choices"][0]["logprobs"]["top_logprobs"];
    assert_eq!(tops[1], json!({"token_id:3": -0.25, "token_id:72": -1.5}));
}

#[test]
fn a_chats_logprobs_have_the_tokens_bytes() {
    let (mut answer, served) = answer(Style::Chat, json!({"logprobs": true}));
    let half = served.tokenizer.encode("é", false).unwrap()[0];
    let logprobs =
        Some(Logprobs { chosen: TokenLogprob { token: half, logprob: -0.5 }, top: Vec::new() });
    answer.hear(0, Event::Token { choice: 0, token: half, logprobs, text: String::new() });
    answer.hear(0, finished(0, ""));
    let content = json(&answer.finish())["choices"][0]["logprobs"]["content"].clone();
    let expected = json!([{
        "token": served.tokenizer.token_text(half), "logprob": -0.5,
        "bytes": served.tokenizer.token_bytes(half), "top_logprobs": [],
    }]);
    assert_eq!(content, expected);
}

#[test]
fn an_offset_counts_characters_of_the_text_whatever_spells_them() {
    let (mut answer, served) = answer(Style::Completion, json!({"logprobs": 0}));
    let mut tokens = served.tokenizer.encode("aé", false).unwrap();
    tokens.push(served.model.eos[0]);
    tokens.extend(served.tokenizer.encode("b", false).unwrap());
    for token in &tokens {
        let logprobs = Some(scored(token.0, -1.0));
        answer.hear(0, Event::Token { choice: 0, token: *token, logprobs, text: "".into() });
    }
    answer.hear(0, finished(0, "aéb"));
    let offsets = json(&answer.finish())["choices"][0]["logprobs"]["text_offset"].clone();
    let offsets: Vec<u64> = offsets.as_array().unwrap().iter().flat_map(Value::as_u64).collect();
    assert_eq!((offsets[0], offsets[1]), (0, 1));
    // The end token shows nothing, so what follows it begins where it does.
    assert_eq!(offsets[offsets.len() - 2..], [2, 2]);
}

fn reading(parallel: bool) -> Reading {
    let format = Format { reasons: true, calls: Some(CallFormat::KeysAndValues) };
    let tools = json!({"add": {}, "now": {}}).as_object().unwrap().clone();
    let parser = Parser::new(format, Arc::new(tools), "<think>");
    Reading { parser, parallel, hides_reasoning: false }
}

fn tool_answer(stream: bool, parallel: bool) -> Answer {
    let (mut answer, _) = answer(Style::Chat, json!({"stream": stream}));
    answer.choices[0].reader = Some(Reader::new(reading(parallel)));
    answer
}

const TOOL_TEXT: [&str; 7] = [
    "Let me",
    " see.</th",
    "ink>Yes.<tool_call>a",
    "dd<arg_key>a</arg_key><arg_value>1",
    "</arg_value></tool_call>",
    "<tool_call>now</tool_call>",
    "",
];

#[test]
fn a_whole_chat_has_reasoning_and_calls_apart() {
    let mut answer = tool_answer(false, true);
    for (number, text) in TOOL_TEXT.iter().enumerate() {
        answer.hear(0, token(0, number as u32, text));
    }
    answer.hear(0, finished(0, ""));
    let choice = json(&answer.finish())["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = |index: usize, name: &str, arguments: &str| {
        json!({
            "id": format!("call_000000000000000a00{index:02x}"), "type": "function",
            "function": {"name": name, "arguments": arguments},
        })
    };
    let expected = json!({
        "role": "assistant", "content": "Yes.", "reasoning_content": "Let me see.",
        "refusal": null, "tool_calls": [call(0, "add", "{\"a\":1}"), call(1, "now", "{}")],
    });
    assert_eq!(choice["message"], expected);

    let mut alone = tool_answer(false, false);
    let said = "</think><tool_call>add</tool_call><tool_call>now</tool_call>";
    alone.hear(0, token(0, 1, said));
    alone.hear(0, finished(0, ""));
    let message = json(&alone.finish())["choices"][0]["message"].clone();
    assert_eq!(message["content"], Value::Null);
    assert_eq!(message["tool_calls"], json!([call(0, "add", "{}")]), "only one was wanted");
}

#[test]
fn a_streamed_call_has_its_name_whole_and_first() {
    let mut answer = tool_answer(true, true);
    let mut deltas = Vec::new();
    for (number, text) in TOOL_TEXT.iter().enumerate() {
        let chunk = answer.hear(0, token(0, number as u32, text));
        deltas.extend(chunk.map(|chunk| chunk["choices"][0]["delta"].clone()));
    }
    let first = json!({"index": 0, "id": "call_000000000000000a0000", "type": "function",
        "function": {"name": "add", "arguments": "{\"a\":"}});
    let second = json!({"index": 1, "id": "call_000000000000000a0001", "type": "function",
        "function": {"name": "now", "arguments": "{}"}});
    let more = |text: &str| json!({"index": 0, "function": {"arguments": text}});
    let expected = [
        json!({"reasoning_content": "Let me"}),
        json!({"reasoning_content": " see."}),
        json!({"content": "Yes."}),
        json!({"tool_calls": [first]}),
        json!({"tool_calls": [more("1}")]}),
        json!({"tool_calls": [second]}),
    ];
    assert_eq!(deltas, expected);
    let last = answer.hear(0, finished(0, "")).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(last["choices"][0]["delta"], json!({}));
}
