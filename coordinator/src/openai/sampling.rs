//! What chat and completions have in common: how tokens are chosen and when an answer ends.

use std::sync::Arc;

use protocol::{RequestId, SamplingParams, TokenId};
use serde_json::Value;

use super::fields::{whole, wrong};
use super::scheduling::Scheduling;
use super::{ApiError, Context, Fields, Options, allowance, random_u64};
use crate::request::{AnswerText, Request};
use crate::text::TextStream;

/// The common part of a body, legal.
pub(crate) struct Common {
    pub(crate) options: Options,
    pub(crate) sampling: SamplingParams,
    pub(crate) prompt_field: &'static str,
    /// Whether the answer may have no token.
    pub(crate) may_say_nothing: bool,
    max_tokens: Option<u32>,
    num_choices: u32,
    stop_strings: Arc<[String]>,
    stop_tokens: Arc<[TokenId]>,
    scheduling: Scheduling,
}

impl Common {
    /// Takes the fields that both endpoints have.
    pub(crate) fn take(fields: &mut Fields, context: Context<'_>) -> Result<Self, ApiError> {
        let Context { model, config, .. } = context;
        check_model(fields, context)?;
        let max_tokens = match (fields.u32("max_tokens")?, fields.u32("max_completion_tokens")?) {
            (Some(one), Some(other)) if one != other => {
                let message = "max_tokens and max_completion_tokens differ; give one of them";
                return Err(ApiError::invalid("max_tokens", message));
            }
            (one, other) => one.or(other),
        };
        let num_choices = fields.u32("n")?.unwrap_or(1);
        if num_choices == 0 || num_choices > config.max_choices {
            let max = config.max_choices;
            let message = format!("n must be from 1 to {max} (http.max_choices)");
            return Err(ApiError::invalid("n", message));
        }
        fields.only("best_of", &[num_choices.into()])?;
        let seed = match fields.take("seed") {
            None => context.seed.map_or_else(random_u64, Ok)?,
            // Any integer that JSON can carry, negative ones too.
            Some(value) => value
                .as_u64()
                .or_else(|| value.as_i64().map(|seed| seed as u64))
                .ok_or_else(|| wrong("seed", "a whole number", &value))?,
        };
        let (off, own) = (SamplingParams::default(), model.sampling);
        let sampling = SamplingParams {
            temperature: fields
                .f32("temperature", 0.0, 100.0)?
                .or(own.temperature)
                .unwrap_or(off.temperature),
            // -1 is how some clients say "off".
            top_k: match fields.take("top_k") {
                None => own.top_k.unwrap_or(off.top_k),
                Some(value) if value.as_i64() == Some(-1) => 0,
                Some(value) => whole(&value)
                    .ok_or_else(|| wrong("top_k", "a whole number, 0 or -1 for off", &value))?,
            },
            top_p: fields.f32("top_p", 0.0, 1.0)?.or(own.top_p).unwrap_or(off.top_p),
            min_p: fields.f32("min_p", 0.0, 1.0)?.or(own.min_p).unwrap_or(off.min_p),
            repetition_penalty: fields
                .f32("repetition_penalty", 0.01, 100.0)?
                .or(own.repetition_penalty)
                .unwrap_or(off.repetition_penalty),
            frequency_penalty: fields.f32("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            presence_penalty: fields.f32("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: logit_bias(fields, context)?,
            seed,
            choice: 0,
            num_logprobs: None,
            num_prompt_logprobs: None,
        };
        let stream = fields.bool("stream")?;
        let (include_usage, continuous_usage) = include_usage(fields, stream)?;
        let mut stop_tokens =
            if fields.bool("ignore_eos")? { Vec::new() } else { model.eos.clone() };
        stop_tokens.extend(stop_token_ids(fields, context)?);
        let durable = fields.bool("durable")?;
        if durable && (!stream || num_choices > 1) {
            let message = "durable: true is for one answer that is streamed: send stream: true, \
                           and leave n at 1";
            return Err(ApiError::invalid("durable", message).code("unsupported_parameter"));
        }
        let stop_strings: Arc<[String]> = stop(fields, context)?.into();
        let options = Options {
            stream,
            durable,
            stops: Arc::clone(&stop_strings),
            include_usage,
            continuous_usage,
            return_token_ids: fields.bool("return_token_ids")?,
            tokens_as_ids: fields.bool("return_tokens_as_token_ids")?,
            ..Options::default()
        };
        // A special token isn't part of the text in which strings are looked for.
        stop_tokens.extend(stop_strings.iter().filter_map(|it| context.tokenizer.special(it)));
        let prompt_field = "prompt";
        let scheduling = Scheduling::take(fields, context.access)?;
        Ok(Self {
            options,
            sampling,
            prompt_field,
            may_say_nothing: false,
            max_tokens,
            num_choices,
            stop_strings,
            stop_tokens: stop_tokens.into(),
            scheduling,
        })
    }

    /// Refuses a body of more sequences than one may have.
    pub(crate) fn check_sequences(
        &self,
        num_prompts: usize,
        context: Context<'_>,
    ) -> Result<(), ApiError> {
        let num_sequences = num_prompts * self.num_choices as usize;
        let max = context.config.max_request_sequences;
        if num_sequences > max {
            let message = format!(
                "{num_prompts} prompts with n = {} are {num_sequences} sequences, a request has at \
                 most {max} (http.max_request_sequences)",
                self.num_choices
            );
            return Err(ApiError::invalid("n", message));
        }
        Ok(())
    }

    /// A request for a prompt. Without a limit in the body the answer may have `default` tokens,
    /// or as many as fit.
    pub(crate) fn request(
        &self,
        prompt: Vec<TokenId>,
        default: Option<u32>,
        context: Context<'_>,
    ) -> Result<Request, ApiError> {
        let max_model_len = context.model.max_model_len;
        let num_prompt = prompt.len() as u64;
        let field = self.prompt_field;
        if prompt.is_empty() {
            let message = format!("{field}: the prompt has no tokens; give at least one");
            return Err(ApiError::invalid(field, message));
        }
        if let Some(token) = prompt.iter().find(|token| token.0 >= context.model.vocab_size) {
            let vocab_size = context.model.vocab_size;
            let message =
                format!("{field}: token {token} is outside the vocabulary of {vocab_size}");
            return Err(ApiError::invalid(field, message));
        }
        let room = u64::from(max_model_len).saturating_sub(num_prompt);
        let is_scored_only = self.max_tokens == Some(0) && num_prompt <= u64::from(max_model_len);
        if room == 0 && !is_scored_only {
            let message = format!(
                "{field}: this model's context is {max_model_len} tokens and the prompt has \
                 {num_prompt}; shorten it"
            );
            return Err(ApiError::invalid(field, message).code("context_length_exceeded"));
        }
        let max_tokens = match self.max_tokens {
            Some(max_tokens) => u64::from(max_tokens),
            None => {
                let most = allowance::longest_answer(num_prompt, self.num_choices, context.access);
                default.map_or(room, |default| room.min(default.into())).min(most.max(1))
            }
        };
        if max_tokens > room {
            let message = format!(
                "this model's context is {max_model_len} tokens, and {num_prompt} in the prompt \
                 with {max_tokens} in the answer don't fit; shorten the prompt or lower max_tokens"
            );
            return Err(ApiError::invalid("max_tokens", message).code("context_length_exceeded"));
        }
        if max_tokens == 0 && !self.options.echo && !self.may_say_nothing {
            let message = "max_tokens must be at least 1, except with echo";
            return Err(ApiError::invalid("max_tokens", message));
        }
        allowance::check(num_prompt, max_tokens, field, context.access)?;
        let text = TextStream::new(Arc::clone(context.tokenizer), Arc::clone(&self.stop_strings));
        // An answer to messages begins a text, a completion goes on with one.
        let text: Box<dyn AnswerText> = match field {
            "prompt" => Box::new(text.after(&prompt)),
            _ => Box::new(text),
        };
        Ok(Request {
            id: RequestId(random_u64()?),
            model: context.model.id,
            prompt: prompt.into(),
            num_choices: self.num_choices,
            sampling: self.sampling.clone(),
            max_tokens: max_tokens as u32,
            stop_tokens: Arc::clone(&self.stop_tokens),
            text,
            constraint: None,
            tells_hidden: false,
            trace: None,
            priority: self.scheduling.priority,
            tenant: Arc::clone(&context.access.tenant),
            weight: context.access.weight,
            deadline: self.scheduling.deadline,
            require_exact: self.scheduling.require_exact,
            turn: 0,
            resumed: None,
        })
    }
}

/// Takes the model's name; it must be the one that is served, which is also meant where none is.
///
/// # Errors
/// When it is another.
pub(crate) fn check_model(fields: &mut Fields, context: Context<'_>) -> Result<(), ApiError> {
    let served = &context.model.name;
    match fields.string("model")? {
        Some(name) if name != *served => Err(ApiError::no_model(&name, served)),
        Some(_) | None => Ok(()),
    }
}

/// How many logprobs are wanted, within the limit.
pub(crate) fn check_logprobs(
    name: &str,
    wanted: u32,
    context: Context<'_>,
) -> Result<u32, ApiError> {
    let max = context.config.max_logprobs;
    if wanted > max {
        let message = format!("{name} must be at most {max} (http.max_logprobs), not {wanted}");
        return Err(ApiError::invalid(name, message));
    }
    Ok(wanted)
}

/// Whether a stream ends with the token counts, and whether each of its chunks has them.
fn include_usage(fields: &mut Fields, stream: bool) -> Result<(bool, bool), ApiError> {
    let options = match fields.take("stream_options") {
        None => return Ok((false, false)),
        Some(Value::Object(options)) => options,
        Some(other) => return Err(wrong("stream_options", "an object", &other)),
    };
    if !stream {
        let message = "stream_options is only for stream: true";
        return Err(ApiError::invalid("stream_options", message));
    }
    let (mut include, mut continuous) = (false, false);
    for (name, value) in options {
        let full_name = format!("stream_options.{name}");
        let is_known = ["include_usage", "continuous_usage_stats", "include_obfuscation"];
        let wanted = match value {
            _ if !is_known.contains(&name.as_str()) => true, // Refused below.
            Value::Null => false,
            Value::Bool(value) => value,
            other => return Err(wrong(&full_name, "true or false", &other)),
        };
        match name.as_str() {
            "include_usage" => include = wanted,
            "continuous_usage_stats" => continuous = wanted,
            // Padding against eavesdroppers on packet sizes; off is what we do.
            "include_obfuscation" if !wanted => {}
            _ => {
                let message = format!("{full_name} is not supported by this server; remove it");
                return Err(ApiError::invalid(full_name, message).code("unsupported_parameter"));
            }
        }
    }
    Ok((include, include && continuous))
}

/// Tokens that end the answer beside the model's own.
fn stop_token_ids(fields: &mut Fields, context: Context<'_>) -> Result<Vec<TokenId>, ApiError> {
    let expected = "a list of token ids";
    let items = match fields.take("stop_token_ids") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong("stop_token_ids", expected, &other)),
    };
    let (max, vocab_size) = (context.config.max_stop_strings, context.model.vocab_size);
    if items.len() > max {
        let message = format!("stop_token_ids has at most {max} tokens (http.max_stop_strings)");
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    let id = |item: &Value| whole(item).filter(|id| *id < vocab_size).map(TokenId);
    let ids =
        items.iter().map(|item| id(item).ok_or_else(|| wrong("stop_token_ids", expected, item)));
    ids.collect()
}

/// Refuses a text that can't be anything but too long before it is encoded.
pub(crate) fn check_length(text: &str, field: &str, context: Context<'_>) -> Result<(), ApiError> {
    let max_model_len = context.model.max_model_len;
    let max_bytes = context.tokenizer.max_bytes(max_model_len);
    if text.len() <= max_bytes {
        return Ok(());
    }
    let message = format!(
        "{field}: this model's context is {max_model_len} tokens, which never hold {} bytes of \
         text; shorten it",
        text.len()
    );
    Err(ApiError::invalid(field, message).code("context_length_exceeded"))
}

fn stop(fields: &mut Fields, context: Context<'_>) -> Result<Vec<String>, ApiError> {
    let strings = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                other => Err(wrong("stop", "a string or a list of strings", &other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong("stop", "a string or a list of strings", &other)),
    };
    let (max, max_chars) = (context.config.max_stop_strings, context.config.max_stop_chars);
    if strings.len() > max {
        let message = format!("stop has at most {max} strings (http.max_stop_strings)");
        return Err(ApiError::invalid("stop", message));
    }
    if strings.iter().any(|text| text.is_empty() || text.chars().count() > max_chars) {
        let message =
            format!("a stop string has 1 to {max_chars} characters (http.max_stop_chars)");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(strings)
}

fn logit_bias(fields: &mut Fields, context: Context<'_>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("logit_bias", "an object of token ids", &other)),
    };
    let max = context.config.max_logit_bias;
    if map.len() > max {
        let message = format!("logit_bias has at most {max} entries (http.max_logit_bias)");
        return Err(ApiError::invalid("logit_bias", message));
    }
    map.into_iter()
        .map(|(token, bias)| {
            // One way to write an id, so that no token is named twice.
            let is_written_so = |id: &u32| id.to_string() == token;
            let id = token.parse().ok().filter(is_written_so);
            let id = id.filter(|id| *id < context.model.vocab_size);
            let id = id.ok_or_else(|| {
                let vocab_size = context.model.vocab_size;
                let message = format!("logit_bias: {token} is no token id below {vocab_size}");
                ApiError::invalid("logit_bias", message)
            })?;
            let number = bias.as_f64().map(|bias| bias as f32);
            match number.filter(|bias| (-100.0..=100.0).contains(bias)) {
                Some(number) => Ok((TokenId(id), number)),
                None => Err(wrong("logit_bias", "numbers from -100 to 100", &bias)),
            }
        })
        .collect()
}
