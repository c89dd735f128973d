//! `/v1/completions`: text or token ids in, text out.

use protocol::TokenId;
use serde_json::Value;

use super::fields::wrong;
use super::sampling::{Common, check_length, check_logprobs};
use super::structured::Structured;
use super::{ApiError, Context, Echo, Fields, Parsed, Style, infill, known};
use crate::grammar::Begins;
use crate::infill::Between;

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Most prompts of one body.
const MAX_PROMPTS: usize = 256;

/// The requests of a body, one for each prompt.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub(crate) fn parse(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut common = Common::take(&mut fields, context)?;
    known::settle(&mut fields, Style::Completion)?;
    common.options.echo = fields.bool("echo")?;
    if let Some(wanted) = fields.u32("logprobs")? {
        let wanted = Some(check_logprobs("logprobs", wanted, context)?);
        common.options.logprobs = true;
        common.sampling.num_logprobs = wanted;
        common.sampling.num_prompt_logprobs = wanted.filter(|_| common.options.echo);
    }
    let structured = Structured::take(&mut fields)?;
    let prompt = fields.required("prompt")?;
    let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
    let prompts = match (suffix, prompt) {
        (None, prompt) => prompts(prompt, common.options.echo, context)?,
        (Some(suffix), Value::String(prompt)) if !common.options.echo => {
            let between = Between { before: prompt, after: suffix, ..Between::default() };
            vec![(infill::prompt(&between, ["prompt", "suffix"], context)?, None)]
        }
        (Some(_), _) => {
            let message = "suffix needs one prompt of text, and no echo";
            return Err(ApiError::invalid("suffix", message));
        }
    };
    fields.finish()?;
    common.check_sequences(prompts.len(), context)?;
    if common.options.durable && prompts.len() > 1 {
        let message = "durable: true is for one prompt; send a request for each";
        return Err(ApiError::invalid("durable", message).code("unsupported_parameter"));
    }
    let default = match context.config.default_max_tokens {
        0 => DEFAULT_MAX_TOKENS,
        configured => configured,
    };
    let (mut requests, mut echoes) = (Vec::new(), Vec::new());
    for (tokens, echo) in prompts {
        let mut request = common.request(tokens, Some(default), context)?;
        // Bodies of one tenant take turns, however many prompts each has.
        request.turn = requests.len() as u32 * request.num_choices;
        requests.push(request);
        echoes.extend(echo);
    }
    if let Some(structured) = structured {
        let constraint = structured.compile(Begins::First, context)?;
        requests.iter_mut().for_each(|request| request.constraint = Some(constraint.clone()));
    }
    Ok(Parsed { requests, echoes, options: common.options })
}

/// The tokens of a prompt, and what of it an answer repeats.
type Prompt = (Vec<TokenId>, Option<Echo>);

fn prompts(prompt: Value, echo: bool, context: Context<'_>) -> Result<Vec<Prompt>, ApiError> {
    let text = |text: &str| encode(text, echo, context);
    let ids = |ids: &[Value]| {
        let tokens = token_ids(ids)?;
        let known = tokens.iter().all(|token| token.0 < context.model.vocab_size);
        let echo = (echo && known).then(|| Echo {
            text: context.tokenizer.decode(&tokens, false),
            tokens: 0..tokens.len(),
        });
        Ok((tokens, echo))
    };
    let items = match prompt {
        Value::String(prompt) => return Ok(vec![text(&prompt)?]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            return Ok(vec![ids(&items)?]);
        }
        Value::Array(items) if !items.is_empty() => items,
        other => return Err(expected(&other)),
    };
    if items.len() > MAX_PROMPTS {
        let message = format!("at most {MAX_PROMPTS} prompts in one request");
        return Err(ApiError::invalid("prompt", message));
    }
    items
        .iter()
        .map(|item| match item {
            Value::String(prompt) => text(prompt),
            Value::Array(tokens) => ids(tokens),
            other => Err(expected(other)),
        })
        .collect()
}

fn encode(text: &str, echo: bool, context: Context<'_>) -> Result<Prompt, ApiError> {
    check_length(text, "prompt", context)?;
    let encode = |specials: bool| {
        let tokens = context.tokenizer.encode(text, specials);
        tokens.map_err(|cause| ApiError::invalid("prompt", cause.to_string()))
    };
    let tokens = encode(true)?;
    if !echo {
        return Ok((tokens, None));
    }
    let own = encode(false)?;
    let at = (0..=tokens.len() - own.len().min(tokens.len()))
        .find(|at| tokens[*at..].starts_with(&own))
        .unwrap_or(0);
    let end = (at + own.len()).min(tokens.len());
    Ok((tokens, Some(Echo { text: text.to_owned(), tokens: at..end })))
}

fn token_ids(items: &[Value]) -> Result<Vec<TokenId>, ApiError> {
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
    items.iter().map(|item| id(item).ok_or_else(|| expected(item))).collect()
}

fn expected(found: &Value) -> ApiError {
    wrong("prompt", "a string, a list of strings, token ids, or lists of token ids", found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::testing::{Served, table};
    use serde_json::json;

    fn parsed(body: &Value) -> Result<Parsed, ApiError> {
        parse(body.to_string().as_bytes(), Served::chat().context())
    }

    #[test]
    fn a_prompt_is_text_or_tokens_one_or_many() {
        let prompts = |prompt: Value| -> Vec<Vec<u32>> {
            let parsed = parsed(&json!({"model": "m", "prompt": prompt})).unwrap();
            let ids = |request: &crate::request::Request| {
                request.prompt.iter().map(|token| token.0).collect()
            };
            parsed.requests.iter().map(ids).collect()
        };
        assert_eq!(prompts(json!([5, 6])), [[5, 6]]);
        assert_eq!(prompts(json!([[5, 6], [7]])), [vec![5, 6], vec![7]]);
        let one = prompts(json!("Hi"));
        assert_eq!(prompts(json!(["Hi", "Hi"])), [one[0].clone(), one[0].clone()]);
    }

    #[test]
    fn a_text_that_can_only_be_too_long_is_refused_before_it_is_encoded() {
        let served = Served::chat();
        let longest = served.tokenizer.max_bytes(served.model.max_model_len);
        let refused = |text: String| {
            let body = json!({"model": "m", "prompt": text}).to_string();
            parse(body.as_bytes(), served.context()).unwrap_err()
        };
        for (num_bytes, said) in [(longest, "the prompt has"), (longest + 1, "never hold")] {
            let error = refused("x".repeat(num_bytes));
            assert!(error.message.contains(said), "{num_bytes}: {}", error.message);
            assert_eq!(error.code, Some("context_length_exceeded"));
        }
    }

    #[test]
    fn answers_end_at_tokens_that_are_named_by_number_or_by_their_text() {
        let stops = |more: Value| {
            let mut body = json!({"model": "m", "prompt": [5]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let ids = parsed(&body).unwrap().requests[0].stop_tokens.clone();
            ids.iter().map(|id| id.0).collect::<Vec<_>>()
        };
        let user = Served::chat().tokenizer.special("<|user|>").unwrap().0;
        assert_eq!(stops(json!({"stop_token_ids": []})), [595]);
        assert_eq!(stops(json!({"stop_token_ids": [7, 8.0]})), [595, 7, 8]);
        assert_eq!(stops(json!({"stop_token_ids": [7], "ignore_eos": true})), [7]);
        assert_eq!(stops(json!({"stop": ["<|user|>", "user"]})), [595, user]);
        for wrong in [json!({"stop_token_ids": 7}), json!({"stop_token_ids": [640]})] {
            let mut body = json!({"model": "m", "prompt": [5]});
            body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            assert_eq!(parsed(&body).unwrap_err().param.as_deref(), Some("stop_token_ids"));
        }
    }

    #[test]
    fn what_is_absent_has_openais_default() {
        let parsed = parsed(&json!({"model": "m", "prompt": [5]})).unwrap();
        let request = &parsed.requests[0];
        assert_eq!((request.max_tokens, request.num_choices), (DEFAULT_MAX_TOKENS, 1));
        assert_eq!(*request.stop_tokens, [TokenId(595)]);
        let sampling =
            protocol::SamplingParams { seed: request.sampling.seed, ..Default::default() };
        assert_eq!(request.sampling, sampling);
        assert!(!parsed.options.stream && !parsed.options.logprobs && !parsed.options.echo);
    }

    #[test]
    fn what_the_models_authors_recommend_stands_where_a_body_says_nothing() {
        let mut served = Served::chat();
        served.model.sampling = checkpoint::SamplingDefaults {
            temperature: Some(0.25),
            top_k: Some(20),
            top_p: Some(0.5),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            max_new_tokens: Some(9),
        };
        let sampling = |more: Value| {
            let mut body = json!({"model": "m", "prompt": [5], "seed": 1});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let parsed = parse(body.to_string().as_bytes(), served.context()).unwrap();
            let it = parsed.requests[0].sampling.clone();
            (it.temperature, it.top_k, it.top_p, it.min_p, it.repetition_penalty)
        };
        assert_eq!(sampling(json!({})), (0.25, 20, 0.5, 0.125, 1.5));
        let own = json!({
            "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1,
        });
        assert_eq!(sampling(own), (1.0, 0, 1.0, 0.0, 1.0));
    }

    #[test]
    fn an_echo_is_the_prompt_as_it_was_sent() {
        let echo = |prompt: Value| {
            let body = json!({"model": "m", "prompt": prompt, "echo": true});
            let parsed = parsed(&body).unwrap();
            let (echo, request) = (parsed.echoes[0].clone(), &parsed.requests[0]);
            let decoded =
                Served::chat().tokenizer.decode(&request.prompt[echo.tokens.clone()], false);
            (echo.text, decoded, request.prompt.len() - echo.tokens.len())
        };
        let (text, decoded, num_added) = echo(json!("Hi there"));
        assert_eq!((text.as_str(), decoded.as_str()), ("Hi there", "Hi there"));
        let with = Served::chat().tokenizer.encode("Hi there", true).unwrap().len();
        let without = Served::chat().tokenizer.encode("Hi there", false).unwrap().len();
        assert_eq!(num_added, with - without);
        assert_eq!(echo(json!([5, 6])).2, 0);
        assert!(parsed(&json!({"model": "m", "prompt": "Hi"})).unwrap().echoes.is_empty());
    }

    #[test]
    fn a_body_has_no_more_sequences_than_it_may() {
        let mut served = Served::chat();
        served.config.max_request_sequences = 6;
        let parse = |body: Value| parse(body.to_string().as_bytes(), served.context());
        let body = json!({"model": "m", "prompt": [[5], [6], [7]], "n": 2});
        let turns: Vec<_> = parse(body).unwrap().requests.iter().map(|it| it.turn).collect();
        assert_eq!(turns, [0, 2, 4]);
        let error = parse(json!({"model": "m", "prompt": [[5], [6], [7]], "n": 3})).unwrap_err();
        assert!(error.message.contains("9 sequences") && error.param.as_deref() == Some("n"));
    }

    #[test]
    fn a_missing_seed_is_drawn_once_for_all_choices() {
        let body = json!({"model": "m", "prompt": [[5], [6]], "n": 2});
        let seeds = |parsed: &Parsed| -> Vec<u64> {
            parsed.requests.iter().map(|request| request.sampling.seed).collect()
        };
        let first = seeds(&parsed(&body).unwrap());
        assert_eq!(first[0], first[1]);
        assert_ne!(first, seeds(&parsed(&body).unwrap()));
        let body = json!({"model": "m", "prompt": [5], "seed": -1});
        assert_eq!(seeds(&parsed(&body).unwrap()), [u64::MAX]);
    }

    #[test]
    fn every_parameter_reaches_the_request() {
        let parsed = parsed(&json!({
            "model": "m", "prompt": [5], "max_tokens": 3, "temperature": 0, "top_p": 0.5,
            "top_k": 7, "min_p": 0.25, "seed": 9, "stop": ["a", "b"], "n": 3, "logprobs": 4,
            "logit_bias": {"12": -100, "13": 0.5}, "frequency_penalty": -2, "presence_penalty": 2,
            "repetition_penalty": 1.5, "ignore_eos": true, "echo": true, "stream": true,
            "stream_options": {"include_usage": true}, "return_token_ids": true,
            "return_tokens_as_token_ids": true, "user": "someone",
        }))
        .unwrap();
        let request = &parsed.requests[0];
        assert_eq!((request.max_tokens, request.num_choices), (3, 3));
        assert!(request.stop_tokens.is_empty());
        let expected = protocol::SamplingParams {
            temperature: 0.0,
            top_k: 7,
            top_p: 0.5,
            min_p: 0.25,
            repetition_penalty: 1.5,
            frequency_penalty: -2.0,
            presence_penalty: 2.0,
            logit_bias: vec![(TokenId(12), -100.0), (TokenId(13), 0.5)],
            seed: 9,
            choice: 0,
            num_logprobs: Some(4),
            num_prompt_logprobs: Some(4),
        };
        assert_eq!(request.sampling, expected);
        let options = &parsed.options;
        assert!(options.stream && options.include_usage && options.echo && options.logprobs);
        assert!(options.return_token_ids && options.tokens_as_ids);
    }

    #[test]
    fn a_prompt_alone_is_scored_with_echo() {
        let body = json!({"model": "m", "prompt": [5, 6], "max_tokens": 0, "echo": true});
        assert_eq!(parsed(&body).unwrap().requests[0].max_tokens, 0);
        let full: Vec<u32> = vec![5; 256];
        let body = json!({"model": "m", "prompt": full, "max_tokens": 0, "echo": true});
        assert!(parsed(&body).is_ok(), "a prompt may fill the context");
    }

    #[test]
    fn what_does_not_fit_the_context_is_refused_with_the_numbers() {
        let body = json!({"model": "m", "prompt": vec![5; 200], "max_tokens": 57});
        let error = parsed(&body).unwrap_err();
        assert_eq!((error.status, error.code), (400, Some("context_length_exceeded")));
        for number in ["256", "200", "57"] {
            assert!(error.message.contains(number), "{error}");
        }
        for body in [
            json!({"model": "m", "prompt": vec![5; 256]}),
            json!({"model": "m", "prompt": vec![5; 257], "max_tokens": 0, "echo": true}),
        ] {
            let error = parsed(&body).unwrap_err();
            let named = (error.param.as_deref(), error.code);
            assert_eq!(named, (Some("prompt"), Some("context_length_exceeded")));
        }
        let body = json!({"model": "m", "prompt": vec![5; 250]});
        assert_eq!(parsed(&body).unwrap().requests[0].max_tokens, 6, "as many as fit");
    }

    #[test]
    fn another_model_is_not_found() {
        let error = parsed(&json!({"model": "gpt-9", "prompt": [5]})).unwrap_err();
        assert_eq!((error.status, error.code), (404, Some("model_not_found")));
        assert!(error.message.contains("gpt-9") && error.message.contains("has m"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let unsupported = Some("unsupported_parameter");
        let many: serde_json::Map<_, _> =
            (0..1025).map(|id| ((id % 640).to_string() + &" ".repeat(id), json!(1))).collect();
        let cases = [
            (json!({"model": 1}), "model", None),
            (json!({"prompt": null}), "prompt", None),
            (json!({"prompt": []}), "prompt", None),
            (json!({"prompt": [[]]}), "prompt", None),
            (json!({"prompt": 5}), "prompt", None),
            (json!({"prompt": [5, "x"]}), "prompt", None),
            (json!({"prompt": ["x", 5]}), "prompt", None),
            (json!({"prompt": [-1]}), "prompt", None),
            (json!({"prompt": [1.5]}), "prompt", None),
            (json!({"prompt": [640]}), "prompt", None),
            (json!({"prompt": [5_000_000_000_u64]}), "prompt", None),
            (json!({"prompt": vec!["x"; 257]}), "prompt", None),
            (json!({"max_tokens": -1}), "max_tokens", None),
            (json!({"max_tokens": 1.5}), "max_tokens", None),
            (json!({"max_tokens": "3"}), "max_tokens", None),
            (json!({"max_tokens": 0}), "max_tokens", None),
            (json!({"temperature": -0.1}), "temperature", None),
            (json!({"temperature": 1e300}), "temperature", None),
            (json!({"temperature": "hot"}), "temperature", None),
            (json!({"top_p": 1.1}), "top_p", None),
            (json!({"top_k": -2}), "top_k", None),
            (json!({"min_p": 2}), "min_p", None),
            (json!({"seed": 1.5}), "seed", None),
            (json!({"seed": "x"}), "seed", None),
            (json!({"stop": 5}), "stop", None),
            (json!({"stop": [5]}), "stop", None),
            (json!({"stop": ""}), "stop", None),
            (json!({"stop": vec!["x"; 17]}), "stop", None),
            (json!({"stop": "x".repeat(1025)}), "stop", None),
            (json!({"n": 0}), "n", None),
            (json!({"n": 17}), "n", None),
            (json!({"best_of": 2}), "best_of", unsupported),
            (json!({"logprobs": true}), "logprobs", None),
            (json!({"logprobs": 21}), "logprobs", None),
            (json!({"logit_bias": [1]}), "logit_bias", None),
            (json!({"logit_bias": {"640": 1}}), "logit_bias", None),
            (json!({"logit_bias": {"05": 1}}), "logit_bias", None),
            (json!({"logit_bias": {"x": 1}}), "logit_bias", None),
            (json!({"logit_bias": {"5": 101}}), "logit_bias", None),
            (json!({"logit_bias": {"5": "1"}}), "logit_bias", None),
            (json!({"logit_bias": many}), "logit_bias", None),
            (json!({"frequency_penalty": 2.1}), "frequency_penalty", None),
            (json!({"presence_penalty": -2.1}), "presence_penalty", None),
            (json!({"repetition_penalty": 0}), "repetition_penalty", None),
            (json!({"stream": "yes"}), "stream", None),
            (json!({"stream_options": {}}), "stream_options", None),
            (
                json!({"stream": true, "stream_options": {"include_usage": 1}}),
                "stream_options.include_usage",
                None,
            ),
            (
                json!({"stream": true, "stream_options": {"wibble": 1}}),
                "stream_options.wibble",
                unsupported,
            ),
            (json!({"ignore_eos": 1}), "ignore_eos", None),
            (json!({"echo": 1}), "echo", None),
            (json!({"suffix": "x"}), "suffix", None),
            (json!({"messages": []}), "messages", unsupported),
            (json!({"wibble": 1}), "wibble", Some("unknown_parameter")),
        ];
        table(&Served::chat(), parse, &json!({"model": "m", "prompt": [5]}), &cases);
    }
}
