//! Limits of `[http]` that a body meets: what is at the limit is taken, one more refused by name.

use protocol::config::Http;
use serde_json::{Value, json};

use super::testing::Served;
use super::{Parsed, parse_chat, parse_completion};

fn parsed(change: fn(&mut Http), more: &Value) -> Result<Parsed, String> {
    let mut served = Served::chat();
    change(&mut served.config);
    let mut body = json!({"model": "m", "prompt": [5]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    parse_completion(body.to_string().as_bytes(), served.context()).map_err(|error| error.message)
}

#[test]
fn each_limit_of_a_body_bites() {
    type Change = fn(&mut Http);
    let limits: [(Change, &str, Value, Value); 7] = [
        (
            |config| config.max_logprobs = 2,
            "http.max_logprobs",
            json!({"logprobs": 2}),
            json!({"logprobs": 3}),
        ),
        (|config| config.max_choices = 2, "http.max_choices", json!({"n": 2}), json!({"n": 3})),
        (
            |config| config.max_request_sequences = 4,
            "http.max_request_sequences",
            json!({"n": 2, "prompt": [[5], [6]]}),
            json!({"n": 2, "prompt": [[5], [6], [7]]}),
        ),
        (
            |config| config.max_stop_strings = 2,
            "http.max_stop_strings",
            json!({"stop": ["a", "b"]}),
            json!({"stop": ["a", "b", "c"]}),
        ),
        (
            |config| config.max_stop_strings = 1,
            "http.max_stop_strings",
            json!({"stop_token_ids": [5]}),
            json!({"stop_token_ids": [5, 6]}),
        ),
        (
            |config| config.max_stop_chars = 2,
            "http.max_stop_chars",
            json!({"stop": "é中"}),
            json!({"stop": "é中b"}),
        ),
        (
            |config| config.max_logit_bias = 1,
            "http.max_logit_bias",
            json!({"logit_bias": {"5": 1}}),
            json!({"logit_bias": {"5": 1, "6": 1}}),
        ),
    ];
    for (change, name, most, more) in limits {
        parsed(change, &most).unwrap_or_else(|error| panic!("{most}: {error}"));
        let error = parsed(change, &more).unwrap_err();
        assert!(error.contains(name), "{more}: {error}");
    }
}

#[test]
fn an_answer_is_as_long_as_configured_where_a_body_says_nothing() {
    let configured: fn(&mut Http) = |config| config.default_max_tokens = 9;
    assert_eq!(parsed(configured, &json!({})).unwrap().requests[0].max_tokens, 9);
    assert_eq!(parsed(configured, &json!({"max_tokens": 3})).unwrap().requests[0].max_tokens, 3);
    let mut served = Served::chat();
    configured(&mut served.config);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let chat = parse_chat(body.as_bytes(), served.context()).unwrap();
    assert_eq!(chat.requests[0].max_tokens, 9);
}
