use super::*;
use crate::events::More;
use crate::openai::testing::Served;
use crate::openai::tools::Reading;
use crate::openai::{parse_chat, parse_completion, parse_messages, parse_responses};
use crate::parser::{AnswerFormat, CallFormat, Parser};
use crate::testing::sentencepiece;
use protocol::TokenLogprob;

impl Answer {
    fn hear(&mut self, number: usize, event: Event) -> Option<Value> {
        let mut chunks = self.take(Heard { number, event, more: More::default() });
        assert!(chunks.len() <= 1, "{chunks:?}");
        chunks.pop().map(|chunk| json(&chunk.data))
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn answer(style: Style, more: Value) -> (Answer, Served) {
    let served = Served::chat();
    let mut body = match style {
        Style::Chat => json!({"messages": [{"role": "user", "content": "Hi"}]}),
        Style::Completion | Style::Infill | Style::Embeddings => json!({"prompt": [39, 72]}),
        Style::Messages => {
            json!({"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]})
        }
        Style::Responses => json!({"input": "Hi"}),
    };
    body["model"] = "m".into();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let parse = match style {
        Style::Chat => parse_chat,
        Style::Completion | Style::Infill | Style::Embeddings => parse_completion,
        Style::Messages => parse_messages,
        Style::Responses => parse_responses,
    };
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
    let opening: Vec<_> = answer.opening().iter().map(|it| json(&it.data)).collect();
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
    let closing = answer.closing();
    assert_eq!(closing[1].data, "[DONE]");
    let closing = json(&closing[0].data);
    assert_eq!(closing["choices"], json!([]));
    assert_eq!(closing["usage"]["completion_tokens"], 2);
}

#[test]
fn each_chunk_has_the_counts_so_far_where_that_is_wanted() {
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let (mut answer, _) = answer(Style::Chat, json!({"stream": true, "stream_options": options}));
    let num_prompt = answer.num_prompt_tokens();
    assert_eq!(json(&answer.opening()[0].data)["usage"]["completion_tokens"], 0);
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
    let format = AnswerFormat { reasons: true, calls: Some(CallFormat::KeysAndValues) };
    let tools = json!({"add": {}, "now": {}}).as_object().unwrap().clone();
    let parser = Parser::new(format, Arc::new(tools), "<think>");
    Reading { parser, parallel, hides_reasoning: false }
}

fn tool_answer(stream: bool, parallel: bool) -> Answer {
    styled(Style::Chat, stream, parallel)
}

fn styled(style: Style, stream: bool, parallel: bool) -> Answer {
    let (mut answer, _) = answer(style, json!({"stream": stream}));
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

/// All events of a stream in which [`TOOL_TEXT`] is said.
fn told(style: Style) -> Vec<(&'static str, Value)> {
    let mut answer = styled(style, true, true);
    let mut chunks = answer.opening();
    for (number, text) in TOOL_TEXT.iter().enumerate() {
        let event = token(0, number as u32, text);
        chunks.extend(answer.take(Heard { number: 0, event, more: More::default() }));
    }
    let event = finished(0, "");
    chunks.extend(answer.take(Heard { number: 0, event, more: More::default() }));
    chunks.extend(answer.closing());
    let events = chunks.into_iter().map(|chunk| {
        let (name, data) = (chunk.event.unwrap(), json(&chunk.data));
        assert_eq!(data["type"], name);
        (name, data)
    });
    events.collect()
}

/// The whole answer in which it is said.
fn whole(style: Style) -> Value {
    let mut answer = styled(style, false, true);
    for (number, text) in TOOL_TEXT.iter().enumerate() {
        answer.hear(0, token(0, number as u32, text));
    }
    answer.hear(0, finished(0, ""));
    json(&answer.finish())
}

/// Goal: blocks begin, go on and end one after the other, and together are the whole message.
/// Method: what a client does with them.
#[test]
fn the_events_of_a_message_build_it() {
    let mut built = Value::Null;
    let mut partial = String::new();
    for (name, data) in told(Style::Messages) {
        let index = data["index"].as_u64().map(|index| index as usize);
        match name {
            "message_start" => built = data["message"].clone(),
            "ping" | "message_stop" => {}
            "content_block_start" => {
                let content = built["content"].as_array_mut().unwrap();
                assert_eq!(Some(content.len()), index);
                content.push(data["content_block"].clone());
                partial.clear();
            }
            "content_block_delta" => {
                let block = &mut built["content"][index.unwrap()];
                let delta = &data["delta"];
                let mut append = |of: &str| {
                    let text = block[of].as_str().unwrap().to_owned() + delta[of].as_str().unwrap();
                    block[of] = text.into();
                };
                match delta["type"].as_str().unwrap() {
                    "thinking_delta" => append("thinking"),
                    "text_delta" => append("text"),
                    _ => partial += delta["partial_json"].as_str().unwrap(),
                }
            }
            "content_block_stop" => {
                if !partial.is_empty() {
                    built["content"][index.unwrap()]["input"] = json(&partial);
                }
            }
            "message_delta" => {
                built["stop_reason"] = data["delta"]["stop_reason"].clone();
                built["usage"] = data["usage"].clone();
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(built, whole(Style::Messages));
    let tool = |index: usize, name: &str, input: Value| {
        let id = format!("call_000000000000000a00{index:02x}");
        json!({"type": "tool_use", "id": id, "name": name, "input": input})
    };
    let expected = json!([
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "Yes."},
        tool(0, "add", json!({"a": 1})), tool(1, "now", json!({})),
    ]);
    assert_eq!(built["content"], expected);
    assert_eq!(built["stop_reason"], "tool_use");
    assert_eq!(built["usage"]["output_tokens"], 7);
}

#[test]
fn the_events_of_a_response_are_numbered_and_end_with_the_whole() {
    let events = told(Style::Responses);
    for (number, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number);
    }
    let (name, last) = events.last().unwrap();
    assert_eq!(*name, "response.completed");
    let mut expected = whole(Style::Responses);
    expected["created_at"] = last["response"]["created_at"].clone();
    assert_eq!(last["response"], expected);
    let kinds: Vec<_> =
        expected["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"]);
    assert_eq!(expected["output"][2]["arguments"], "{\"a\":1}");
    // The last of these was in the tag that ended it.
    assert_eq!(expected["usage"]["output_tokens_details"]["reasoning_tokens"], 3);
    let deltas = events.iter().filter(|(name, _)| name.ends_with(".delta"));
    let by_item = deltas.fold(std::collections::BTreeMap::new(), |mut all, (_, data)| {
        let text: &mut String = all.entry(data["output_index"].as_u64().unwrap()).or_default();
        *text += data["delta"].as_str().unwrap();
        all
    });
    let texts: Vec<_> = by_item.values().map(String::as_str).collect();
    assert_eq!(texts, ["Let me see.", "Yes.", "{\"a\":1}", "{}"]);
    let num = |of: &str| events.iter().filter(|(name, _)| *name == of).count();
    assert_eq!((num("response.output_item.added"), num("response.output_item.done")), (4, 4));
}

#[test]
fn what_is_cut_off_or_fails_says_so_in_its_own_form() {
    let cut = |style: Style| {
        let mut answer = styled(style, false, true);
        answer.hear(0, token(0, 1, "</think>Yes"));
        let reason = FinishReason::Length;
        answer.hear(0, Event::Finished { choice: 0, reason, text: String::new() });
        json(&answer.finish())
    };
    assert_eq!(cut(Style::Messages)["stop_reason"], "max_tokens");
    let response = cut(Style::Responses);
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(response["output"][0]["content"][0]["text"], "Yes");
    let error = ApiError::unavailable("later", "no_pipeline");
    let failed = |style: Style| styled(style, true, true).failed(&error).remove(0);
    let (message, response) = (failed(Style::Messages), failed(Style::Responses));
    assert_eq!((message.event, response.event), (Some("error"), Some("response.failed")));
    assert_eq!(json(&message.data)["error"]["type"], "overloaded_error");
    assert_eq!(json(&response.data)["response"]["error"]["code"], "no_pipeline");
    assert_eq!(json(&failed(Style::Chat).data)["error"]["code"], "no_pipeline");
}
