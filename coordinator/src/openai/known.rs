//! Which field of a body is which: honoured, a hint, accepted where it asks for nothing, or refused
//! by name. What would change an answer and isn't built is never ignored.

use serde_json::{Value, json};

use super::{ApiError, Fields, Style};

/// What becomes of a field.
pub(super) enum Use {
    /// It does what it says.
    Honoured,
    /// It changes no answer, whatever it says.
    Hint,
    /// Accepted at these values, which ask for what is done anyway.
    Only(fn() -> Vec<Value>),
    /// Not built.
    Refused,
}

use Use::{Hint, Honoured, Only, Refused};

const CHAT: &[Style] = &[Style::Chat];
const COMPLETION: &[Style] = &[Style::Completion];
const BOTH: &[Style] = &[Style::Chat, Style::Completion];

/// Every field that is known: OpenAI's, and vLLM's where clients send them.
pub(super) const FIELDS: &[(&str, &[Style], Use)] = &[
    ("model", BOTH, Honoured),
    ("messages", CHAT, Honoured),
    ("prompt", COMPLETION, Honoured),
    ("echo", COMPLETION, Honoured),
    ("suffix", COMPLETION, Honoured),
    ("max_tokens", BOTH, Honoured),
    ("max_completion_tokens", BOTH, Honoured),
    ("temperature", BOTH, Honoured),
    ("top_p", BOTH, Honoured),
    ("top_k", BOTH, Honoured),
    ("min_p", BOTH, Honoured),
    ("seed", BOTH, Honoured),
    ("stop", BOTH, Honoured),
    ("stop_token_ids", BOTH, Honoured),
    ("n", BOTH, Honoured),
    ("best_of", BOTH, Honoured),
    ("logprobs", BOTH, Honoured),
    ("top_logprobs", CHAT, Honoured),
    ("logit_bias", BOTH, Honoured),
    ("frequency_penalty", BOTH, Honoured),
    ("presence_penalty", BOTH, Honoured),
    ("repetition_penalty", BOTH, Honoured),
    ("stream", BOTH, Honoured),
    ("stream_options", BOTH, Honoured),
    ("ignore_eos", BOTH, Honoured),
    ("return_token_ids", BOTH, Honoured),
    ("return_tokens_as_token_ids", BOTH, Honoured),
    ("add_generation_prompt", CHAT, Honoured),
    ("chat_template_kwargs", CHAT, Honoured),
    ("service_tier", BOTH, Honoured),
    ("priority", BOTH, Honoured),
    ("max_time_ms", BOTH, Honoured),
    ("require_exact", BOTH, Honoured),
    ("response_format", BOTH, Honoured),
    ("structured_outputs", BOTH, Honoured),
    ("guided_json", BOTH, Honoured),
    ("guided_regex", BOTH, Honoured),
    ("guided_choice", BOTH, Honoured),
    ("guided_grammar", BOTH, Honoured),
    ("user", BOTH, Hint),
    ("metadata", BOTH, Hint),
    ("prompt_cache_key", BOTH, Hint),
    ("prompt_cache_retention", BOTH, Hint),
    ("prompt_cache_options", BOTH, Hint),
    ("safety_identifier", BOTH, Hint),
    ("prediction", CHAT, Hint),
    ("tools", CHAT, Honoured),
    ("tool_choice", CHAT, Honoured),
    ("parallel_tool_calls", CHAT, Honoured),
    ("reasoning_effort", CHAT, Honoured),
    ("thinking", CHAT, Honoured),
    ("enable_thinking", CHAT, Honoured),
    ("include_reasoning", CHAT, Honoured),
    ("functions", CHAT, Only(|| vec![json!([])])),
    ("function_call", CHAT, Only(|| vec![json!("none"), json!("auto")])),
    ("modalities", CHAT, Only(|| vec![json!(["text"])])),
    ("store", CHAT, Only(|| vec![json!(false)])),
    ("verbosity", CHAT, Only(|| vec![json!("medium")])),
    ("min_tokens", BOTH, Only(|| vec![json!(0)])),
    ("length_penalty", BOTH, Only(|| vec![json!(1)])),
    ("use_beam_search", BOTH, Only(|| vec![json!(false)])),
    ("skip_special_tokens", BOTH, Only(|| vec![json!(true)])),
    ("spaces_between_special_tokens", BOTH, Only(|| vec![json!(true)])),
    ("include_stop_str_in_output", BOTH, Only(|| vec![json!(false)])),
    ("audio", CHAT, Refused),
    ("reasoning", CHAT, Refused),
    ("web_search_options", CHAT, Refused),
    ("logits_processors", BOTH, Refused),
    ("truncate_prompt_tokens", BOTH, Refused),
    ("prompt_logprobs", BOTH, Refused),
    ("allowed_token_ids", BOTH, Refused),
    ("bad_words", BOTH, Refused),
];

/// Takes the hints, and what asks for nothing.
///
/// # Errors
/// When a field asks for what isn't built.
pub(super) fn settle(fields: &mut Fields, style: Style) -> Result<(), ApiError> {
    let of_name = |name: &str| FIELDS.iter().find(|(known, ..)| *known == name);
    let left: Vec<_> = fields.left().filter_map(|(name, _)| of_name(name)).collect();
    for (name, styles, becomes) in left {
        match becomes {
            _ if !styles.contains(&style) => {}
            Honoured | Refused => {}
            Hint => drop(fields.take(name)),
            Only(harmless) => fields.only(name, &harmless())?,
        }
    }
    Ok(())
}

/// Whether a field that was left over is one that clients know.
pub(super) fn is_known(name: &str) -> bool {
    FIELDS.iter().any(|(known, ..)| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::testing::Served;
    use crate::openai::{Parsed, parse_chat, parse_completion};

    fn parse(style: Style, more: &Value) -> Result<Parsed, ApiError> {
        let mut body = match style {
            Style::Completion => json!({"prompt": [5, 6]}),
            _ => json!({"messages": [{"role": "user", "content": "Hi"}]}),
        };
        body["model"] = "m".into();
        body["seed"] = 7.into();
        let more = more.as_object().unwrap().clone();
        if more.contains_key("stream_options") {
            body["stream"] = true.into();
        }
        body.as_object_mut().unwrap().extend(more);
        let (body, served) = (body.to_string(), Served::chat());
        match style {
            Style::Completion => parse_completion(body.as_bytes(), served.context()),
            _ => parse_chat(body.as_bytes(), served.context()),
        }
    }

    /// The request without what is drawn for each.
    fn asked(style: Style, more: &Value) -> String {
        let mut parsed = parse(style, more).unwrap_or_else(|error| panic!("{more}: {error:?}"));
        parsed.requests.iter_mut().for_each(|request| request.id = protocol::RequestId(0));
        format!("{:?} {:?}", parsed.requests, parsed.options)
    }

    #[test]
    fn every_field_is_what_the_table_says() {
        // Of a type that no field has.
        let odd = json!({"no": [{"field": "is"}, "this"]});
        for style in [Style::Chat, Style::Completion] {
            let plain = asked(style, &json!({}));
            for (name, _, becomes) in FIELDS.iter().filter(|(_, styles, _)| styles.contains(&style))
            {
                let refused = |value: &Value| {
                    let error = parse(style, &json!({*name: value})).err()?;
                    Some((error.param?, error.code))
                };
                if !["model", "messages", "prompt", "seed", "stream_options"].contains(name) {
                    assert_eq!(asked(style, &json!({*name: null})), plain, "{name}: null is none");
                }
                match becomes {
                    // Any object is one.
                    Honoured if ["chat_template_kwargs", "guided_json"].contains(name) => {}
                    Honoured => {
                        let (param, code) = refused(&odd).unwrap_or_else(|| panic!("{name}"));
                        assert!(param.starts_with(name) && code != Some("unknown_parameter"));
                    }
                    Hint => assert_eq!(asked(style, &json!({*name: odd})), plain, "{name}"),
                    Only(harmless) => {
                        for value in harmless() {
                            assert_eq!(asked(style, &json!({*name: value})), plain, "{name}");
                        }
                        let expected = ((*name).to_owned(), Some("unsupported_parameter"));
                        assert_eq!(refused(&odd), Some(expected), "{name}");
                    }
                    Refused => {
                        let expected = ((*name).to_owned(), Some("unsupported_parameter"));
                        assert_eq!(refused(&odd), Some(expected), "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn values_that_ask_for_what_is_done_anyway_are_taken() {
        let plain = asked(Style::Chat, &json!({"max_tokens": 5}));
        for more in [
            json!({"max_tokens": 5.0}),
            json!({"max_completion_tokens": 5}),
            json!({"max_tokens": 5, "max_completion_tokens": 5}),
            json!({"max_tokens": 5, "top_logprobs": 0}),
            json!({"max_tokens": 5, "n": 1.0, "best_of": 1}),
        ] {
            assert_eq!(asked(Style::Chat, &more), plain, "{more}");
        }
        assert!(parse(Style::Chat, &json!({"max_tokens": 5, "max_completion_tokens": 6})).is_err());
        assert!(parse(Style::Chat, &json!({"max_tokens": 5.5})).is_err());
    }
}
