//! How long an answer the caller's key allows, and what is refused at once.

use super::ApiError;
use crate::keys::{Access, Limits};

/// Tokens that each of so many answers to so long a prompt may have, where the body names no
/// number.
pub(crate) fn longest_answer(num_prompt: u64, num_choices: u32, access: &Access) -> u64 {
    let Limits { max_context_tokens, max_answer_tokens, tokens_per_minute, .. } = access.limits;
    let beside =
        |limit: Option<u32>| limit.map(|limit| u64::from(limit).saturating_sub(num_prompt));
    let limits = [
        beside(max_context_tokens),
        beside(tokens_per_minute).map(|tokens| tokens / u64::from(num_choices.max(1))),
        max_answer_tokens.map(u64::from),
    ];
    limits.into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Refuses what is longer than the key allows; the prompt comes from `field`.
///
/// # Errors
/// With the limit's name, and with what would be accepted.
pub(crate) fn check(
    num_prompt: u64,
    max_tokens: u64,
    field: &str,
    access: &Access,
) -> Result<(), ApiError> {
    let Limits { max_context_tokens, max_answer_tokens, .. } = access.limits;
    if let Some(limit) = max_answer_tokens.map(u64::from).filter(|limit| max_tokens > *limit) {
        let message = format!(
            "max_tokens is {max_tokens}, and answers to this API key have at most {limit} tokens \
             (max_answer_tokens)"
        );
        return Err(ApiError::invalid("max_tokens", message).code("key_limit_exceeded"));
    }
    let Some(limit) = max_context_tokens.map(u64::from) else { return Ok(()) };
    if num_prompt + max_tokens <= limit {
        return Ok(());
    }
    let (field, advice) = match limit.saturating_sub(num_prompt) {
        0 => (field, "shorten it".to_owned()),
        room => ("max_tokens", format!("shorten the prompt, or give max_tokens {room} at most")),
    };
    let message = format!(
        "{field}: the prompt has {num_prompt} tokens and the answer {max_tokens}, and this API key \
         may have {limit} together (max_context_tokens); {advice}"
    );
    Err(ApiError::invalid(field, message).code("context_length_exceeded"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::Served;
    use super::super::{parse_chat, parse_completion};
    use super::*;

    fn served(limits: Limits) -> Served {
        let mut served = Served::chat();
        let access = &mut served.access;
        (access.limits, access.tenant, access.weight) = (limits, "lab".into(), 7);
        served
    }

    fn completion(served: &Served, more: Value) -> Result<u32, ApiError> {
        let mut body = json!({"model": "m", "prompt": [5, 6, 7, 8]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let parsed = parse_completion(body.to_string().as_bytes(), served.context())?;
        let request = &parsed.requests[0];
        assert_eq!((&*request.tenant, request.weight), ("lab", 7));
        Ok(request.max_tokens)
    }

    #[test]
    fn what_is_longer_than_the_key_allows_is_refused_by_the_limits_name() {
        let longest = served(Limits { max_answer_tokens: Some(10), ..Limits::default() });
        assert_eq!(completion(&longest, json!({"max_tokens": 10})).unwrap(), 10);
        let error = completion(&longest, json!({"max_tokens": 11})).unwrap_err();
        assert_eq!((error.status, error.code), (400, Some("key_limit_exceeded")));
        assert!(error.message.contains("at most 10 tokens (max_answer_tokens)"), "{error}");

        let context = served(Limits { max_context_tokens: Some(20), ..Limits::default() });
        assert_eq!(completion(&context, json!({"max_tokens": 16})).unwrap(), 16);
        let error = completion(&context, json!({"max_tokens": 17})).unwrap_err();
        assert_eq!((error.status, error.code), (400, Some("context_length_exceeded")));
        assert_eq!(error.param.as_deref(), Some("max_tokens"));
        assert!(error.message.contains("max_tokens 16 at most"), "{error}");
        let long = json!({"prompt": (0..20).collect::<Vec<_>>()});
        let error = completion(&context, long).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("prompt"));
        assert!(error.message.contains("20 together (max_context_tokens); shorten it"), "{error}");
    }

    #[test]
    fn who_names_no_length_gets_what_the_key_allows() {
        let chat = |served: &Served| {
            let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
            let parsed = parse_chat(body.to_string().as_bytes(), served.context()).unwrap();
            let request = &parsed.requests[0];
            (request.prompt.len() as u32, request.max_tokens)
        };
        let (num_prompt, max_tokens) = chat(&served(Limits::default()));
        assert_eq!(num_prompt + max_tokens, 256);
        let limit = Some(num_prompt + 9);
        for limits in [
            Limits { max_answer_tokens: Some(9), ..Limits::default() },
            Limits { max_context_tokens: limit, ..Limits::default() },
            Limits { tokens_per_minute: limit, ..Limits::default() },
        ] {
            assert_eq!(chat(&served(limits)), (num_prompt, 9), "{limits:?}");
        }
        let few = served(Limits { tokens_per_minute: Some(4 + 30), ..Limits::default() });
        // Three share what the prompt leaves.
        assert_eq!(completion(&few, json!({"n": 3})).unwrap(), 10);
    }
}
