//! Events in, bodies out: whole answers and the chunks of streams.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::{Logprobs, TokenId};
use serde_json::{Map, Value, json};

use super::logprobs::Naming;
use super::{Options, Parsed};
use crate::request::{Event, FinishReason};
use crate::tokenizer::Tokenizer;

/// Which endpoint's bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// An answer under way.
#[derive(Debug)]
pub struct Answer {
    style: Style,
    id: String,
    model: String,
    created: u64,
    system_fingerprint: String,
    options: Options,
    tokenizer: Arc<Tokenizer>,
    num_choices: u32,
    prompts: Vec<Prompt>,
    choices: Vec<Choice>,
}

#[derive(Debug)]
struct Prompt {
    ids: Arc<[TokenId]>,
    logprobs: Option<Vec<Logprobs>>,
}

#[derive(Debug, Default)]
struct Choice {
    begun: bool,
    num_tokens: usize,
    num_chars: usize,
    // What a whole answer gathers; a stream has sent it already.
    gathered: Piece,
}

/// What a chunk of one choice holds.
#[derive(Debug, Default)]
struct Piece {
    text: String,
    // Those of an echoed prompt first.
    tokens: Vec<(TokenId, Option<Logprobs>)>,
    num_echoed: usize,
    finish_reason: Option<&'static str>,
}

impl Piece {
    fn generated_ids(&self) -> Value {
        self.tokens[self.num_echoed..].iter().map(|(token, _)| token.0).collect()
    }
}

impl Answer {
    /// Nothing was said yet. `id` is the request's number, in the id that clients see.
    pub fn new(
        style: Style,
        id: u64,
        model: String,
        system_fingerprint: String,
        parsed: &Parsed,
        tokenizer: Arc<Tokenizer>,
    ) -> Self {
        let prefix = if style == Style::Chat { "chatcmpl" } else { "cmpl" };
        let num_choices = parsed.requests.first().map_or(1, |request| request.num_choices);
        let prompt = |request: &crate::request::Request| Prompt {
            ids: request.prompt.clone(),
            logprobs: None,
        };
        Self {
            style,
            id: format!("{prefix}-{id:016x}"),
            model,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            system_fingerprint,
            options: parsed.options.clone(),
            tokenizer,
            num_choices,
            prompts: parsed.requests.iter().map(prompt).collect(),
            choices: (0..parsed.requests.len() * num_choices as usize)
                .map(|_| Choice::default())
                .collect(),
        }
    }

    /// The id that clients see.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Tokens of the prompts, each counted once.
    pub fn num_prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.ids.len()).sum()
    }

    /// Tokens of the choices.
    pub fn num_generated_tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.num_tokens).sum()
    }

    /// What a stream says before the first token: who speaks, in a chat.
    pub fn opening(&self) -> Vec<Value> {
        if self.style == Style::Completion {
            return Vec::new();
        }
        let delta = json!({"role": "assistant", "content": ""});
        let choices = 0..self.choices.len();
        choices
            .map(|index| {
                let mut choice = json!({"index": index, "delta": delta, "finish_reason": null});
                self.add_prompt_ids(index, &mut choice);
                self.chunk(vec![choice])
            })
            .collect()
    }

    /// Takes in an event of request number `request`; the chunk that it makes of a stream.
    pub fn take(&mut self, request: usize, event: Event) -> Option<Value> {
        let (choice, piece) = match event {
            Event::Prompt(logprobs) => {
                self.prompts[request].logprobs = Some(logprobs);
                return None;
            }
            Event::Token { choice, token, logprobs, text } => {
                (choice, Piece { text, tokens: vec![(token, logprobs)], ..Piece::default() })
            }
            Event::Finished { choice, reason, text } => {
                let finish_reason = Some(match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                });
                (choice, Piece { text, finish_reason, ..Piece::default() })
            }
            // Whoever reads the events turns a failure into an error.
            Event::Failed(_) => return None,
        };
        let index = request * self.num_choices as usize + choice as usize;
        self.choices[index].num_tokens += piece.tokens.len();
        let piece = self.with_echo(index, request, piece);
        if self.options.stream {
            return self.stream_piece(index, piece);
        }
        let gathered = &mut self.choices[index].gathered;
        gathered.text.push_str(&piece.text);
        gathered.tokens.extend(piece.tokens);
        gathered.num_echoed += piece.num_echoed;
        gathered.finish_reason = piece.finish_reason.or(gathered.finish_reason);
        None
    }

    /// The first piece of a choice begins with the prompt, where that is wanted.
    fn with_echo(&mut self, index: usize, request: usize, piece: Piece) -> Piece {
        if !self.options.echo || self.choices[index].begun {
            return piece;
        }
        self.choices[index].begun = !self.options.stream;
        let prompt = &self.prompts[request];
        let text = self.tokenizer.decode(&prompt.ids, false) + &piece.text;
        let scored = prompt.logprobs.iter().flatten().cloned().map(Some);
        let logprobs = std::iter::once(None).chain(scored);
        let tokens = prompt.ids.iter().copied().zip(logprobs).chain(piece.tokens).collect();
        Piece { text, tokens, num_echoed: prompt.ids.len(), ..piece }
    }

    fn stream_piece(&mut self, index: usize, piece: Piece) -> Option<Value> {
        let carries_tokens = self.options.return_token_ids || self.options.logprobs;
        let says_nothing = piece.text.is_empty() && !(carries_tokens && !piece.tokens.is_empty());
        if says_nothing && piece.finish_reason.is_none() {
            return None;
        }
        let mut choice = match self.style {
            Style::Chat => json!({"index": index, "delta": {"content": piece.text}}),
            Style::Completion => json!({"index": index, "text": piece.text}),
        };
        if self.style == Style::Chat && piece.text.is_empty() && piece.tokens.is_empty() {
            choice["delta"] = json!({});
        }
        let offset = self.choices[index].num_chars;
        choice["logprobs"] = self.logprobs(&piece.tokens, offset);
        choice["finish_reason"] = piece.finish_reason.into();
        if self.options.return_token_ids {
            choice["token_ids"] = piece.generated_ids();
            if self.style == Style::Completion && !self.choices[index].begun {
                self.add_prompt_ids(index, &mut choice);
            }
        }
        self.choices[index].begun = true;
        self.choices[index].num_chars += piece.text.chars().count();
        Some(self.chunk(vec![choice]))
    }

    /// The chunk after the last, where token counts are wanted.
    pub fn closing(&self) -> Option<Value> {
        self.options.include_usage.then(|| {
            let mut chunk = self.chunk(Vec::new());
            chunk["usage"] = self.usage();
            chunk
        })
    }

    /// The whole answer.
    pub fn finish(mut self) -> Value {
        let choices = std::mem::take(&mut self.choices);
        let usage = {
            let generated: usize = choices.iter().map(|choice| choice.num_tokens).sum();
            self.count(generated)
        };
        let choices = choices.into_iter().enumerate().map(|(index, choice)| {
            let choice = choice.gathered;
            let mut body = match self.style {
                Style::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": null},
                }),
                Style::Completion => json!({"index": index, "text": choice.text}),
            };
            body["logprobs"] = self.logprobs(&choice.tokens, 0);
            body["finish_reason"] = choice.finish_reason.into();
            if self.options.return_token_ids {
                body["token_ids"] = choice.generated_ids();
                self.add_prompt_ids(index, &mut body);
            }
            body
        });
        let choices: Vec<_> = choices.collect();
        let object = if self.style == Style::Chat { "chat.completion" } else { "text_completion" };
        let mut body = self.envelope(object, choices);
        body["usage"] = usage;
        body
    }

    fn logprobs(&self, tokens: &[(TokenId, Option<Logprobs>)], offset: usize) -> Value {
        if !self.options.logprobs || tokens.is_empty() {
            return Value::Null;
        }
        let naming = Naming { tokenizer: &self.tokenizer, as_ids: self.options.tokens_as_ids };
        match self.style {
            Style::Chat => {
                let content = tokens.iter().filter_map(|(_, of)| of.as_ref());
                json!({"content": content.map(|of| naming.chat(of)).collect::<Vec<_>>()})
            }
            Style::Completion => {
                let tokens: Vec<_> =
                    tokens.iter().map(|(token, of)| (*token, of.as_ref())).collect();
                naming.completion(&tokens, offset)
            }
        }
    }

    fn add_prompt_ids(&self, index: usize, choice: &mut Value) {
        if self.options.return_token_ids {
            let ids = &self.prompts[index / self.num_choices as usize].ids;
            choice["prompt_token_ids"] = ids.iter().map(|token| token.0).collect();
        }
    }

    fn usage(&self) -> Value {
        self.count(self.num_generated_tokens())
    }

    fn count(&self, num_generated: usize) -> Value {
        let num_prompt = self.num_prompt_tokens();
        json!({
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
        })
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let object =
            if self.style == Style::Chat { "chat.completion.chunk" } else { "text_completion" };
        self.envelope(object, choices)
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        let mut body = Map::new();
        body.insert("id".into(), self.id.as_str().into());
        body.insert("object".into(), object.into());
        body.insert("created".into(), self.created.into());
        body.insert("model".into(), self.model.as_str().into());
        body.insert("system_fingerprint".into(), self.system_fingerprint.as_str().into());
        body.insert("choices".into(), choices.into());
        Value::Object(body)
    }
}
