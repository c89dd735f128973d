//! Events in, bodies out: whole answers and the chunks of streams.

mod spoken;
mod style;
mod voice;

use std::iter::repeat;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::{Logprobs, TokenId};
use serde_json::{Value, json};

use super::body::{Body, Choice as ChoiceBody, Details, Head, Message, Usage};
use super::logprobs::{Naming, Offset, Shown};
use super::{ApiError, Echo, Options, Parsed};
use crate::events::Heard;
use crate::request::{Event, FinishReason};
use crate::tokenizer::Tokenizer;
use spoken::Reader;
pub(crate) use spoken::Spoken;
pub use style::Style;
pub(crate) use voice::Chunk;
use voice::Voice;
pub(crate) use voice::{Counts, Described};

/// An answer under way.
#[derive(Debug)]
pub(crate) struct Answer {
    style: Style,
    // Who tells it, where it isn't told as completions are.
    voice: Option<Voice>,
    number: u64,
    id: String,
    model: String,
    created: u64,
    system_fingerprint: String,
    // What each chunk begins with, once there was one.
    head: OnceLock<String>,
    options: Options,
    tokenizer: Arc<Tokenizer>,
    num_choices: u32,
    prompts: Vec<Prompt>,
    choices: Vec<Choice>,
    // Tokens of the prompts that the prefix cache had.
    num_cached_tokens: usize,
    num_reasoning_tokens: usize,
    // Whether all of it comes from one device class.
    is_exact: bool,
}

#[derive(Debug)]
struct Prompt {
    ids: Arc<[TokenId]>,
    logprobs: Option<Vec<Logprobs>>,
    echo: Option<Echo>,
    hidden: Vec<f32>,
}

#[derive(Debug, Default)]
struct Choice {
    begun: bool,
    ended: bool,
    last: TokenId,
    // The number of the stop string that has ended it.
    stopped: Option<u32>,
    num_tokens: usize,
    // Where the next token begins in its text.
    offset: Offset,
    // Tells reasoning and calls from content, where that is wanted.
    reader: Option<Reader>,
    // What a whole answer gathers; a stream has sent it already.
    gathered: Piece,
}

/// What a chunk of one choice holds.
#[derive(Debug, Default)]
struct Piece {
    text: String,
    // What the text says, where it is read.
    spoken: Option<Spoken>,
    // Those of an echoed prompt first.
    tokens: Vec<(TokenId, Option<Logprobs>)>,
    num_echoed: usize,
    // Bytes of the first of them that the prompt hasn't got: some tokenizers put a space in front.
    num_added_bytes: usize,
    finish_reason: Option<&'static str>,
}

impl Piece {
    fn generated_ids(&self) -> Vec<u32> {
        self.tokens[self.num_echoed..].iter().map(|(token, _)| token.0).collect()
    }
}

impl Answer {
    /// Nothing was said yet. `id` is the request's number, in the id that clients see.
    pub(crate) fn new(
        style: Style,
        id: u64,
        model: String,
        system_fingerprint: String,
        parsed: &Parsed,
        tokenizer: Arc<Tokenizer>,
    ) -> Self {
        let num_choices = parsed.requests.first().map_or(1, |request| request.num_choices);
        let mut echoes = parsed.echoes.iter().cloned();
        let mut prompt = |request: &crate::request::Request| Prompt {
            ids: request.prompt.clone(),
            logprobs: None,
            echo: echoes.next(),
            hidden: Vec::new(),
        };
        Self {
            style,
            voice: Voice::of(style),
            number: id,
            id: format!("{}{id:016x}", style.prefix()),
            model,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            system_fingerprint,
            head: OnceLock::new(),
            options: parsed.options.clone(),
            tokenizer,
            num_choices,
            prompts: parsed.requests.iter().map(&mut prompt).collect(),
            choices: (0..parsed.requests.len() * num_choices as usize)
                .map(|_| Choice {
                    reader: parsed.options.reading.clone().map(Reader::new),
                    ..Choice::default()
                })
                .collect(),
            num_cached_tokens: 0,
            num_reasoning_tokens: 0,
            is_exact: true,
        }
    }

    /// The id that clients see.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// When it was asked for, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.created
    }

    /// As one that was asked for then.
    pub(crate) fn created_at(self, created: u64) -> Self {
        Self { created, head: OnceLock::new(), ..self }
    }

    /// What it says of the pipelines.
    pub(crate) fn system_fingerprint(&self) -> &str {
        &self.system_fingerprint
    }

    /// Whether it goes out while it is computed.
    pub(crate) fn streams(&self) -> bool {
        self.options.stream
    }

    /// Tokens of the prompts that the prefix cache had.
    pub(crate) fn num_cached_tokens(&self) -> usize {
        self.num_cached_tokens
    }

    /// Tokens of the prompts, each counted once.
    pub(crate) fn num_prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.ids.len()).sum()
    }

    pub(crate) fn num_generated_tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.num_tokens).sum()
    }

    /// Whether every choice has ended: no event is to come.
    pub(crate) fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.ended)
    }

    /// Choices of all requests together.
    pub(crate) fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// The number among all choices of a choice of request number `request`.
    pub(crate) fn index(&self, request: usize, choice: u32) -> usize {
        request * self.num_choices as usize + choice as usize
    }

    /// What a stream says before the first token: who speaks, in a chat.
    pub(crate) fn opening(&mut self) -> Vec<Chunk> {
        if let Some(mut voice) = self.voice.take() {
            let chunks = self.describe(0, |answer| voice.begin(answer));
            self.voice = Some(voice);
            return chunks;
        }
        if self.style == Style::Completion {
            return Vec::new();
        }
        let chunk = |index| {
            let (role, content) = (Some("assistant"), Some(Some("")));
            let said = Message { role, content, ..Message::default() };
            let delta = Some(said);
            let mut chunk = self.chunk(vec![ChoiceBody { index, delta, ..ChoiceBody::default() }]);
            chunk.prompt_token_ids = self.prompt_ids(0).filter(|_| index == 0);
            Chunk::from(chunk.text(self.head()))
        };
        (0..self.choices.len()).map(chunk).collect()
    }

    /// Takes in what was heard; the chunks that it makes of a stream.
    pub(crate) fn take(&mut self, heard: Heard) -> Vec<Chunk> {
        let Heard { number: request, event, more } = heard;
        let (choice, mut piece) = match event {
            Event::Hidden(values) => {
                self.prompts[request].hidden = values;
                return Vec::new();
            }
            Event::Prompt(logprobs) => {
                self.prompts[request].logprobs = Some(logprobs);
                return Vec::new();
            }
            Event::Token { choice, token, logprobs: first, text } => {
                let logprobs = more.logprobs.into_iter().map(Some).chain(repeat(None));
                let mut tokens = vec![(token, first)];
                tokens.extend(more.tokens.into_iter().zip(logprobs));
                (choice, Piece { text, tokens, ..Piece::default() })
            }
            Event::Finished { choice, reason, text } => {
                let finish_reason = Some(reason.name());
                let index = self.index(request, choice);
                self.choices[index].stopped = self.stop_of(reason, self.choices[index].last);
                (choice, Piece { text, finish_reason, ..Piece::default() })
            }
            Event::Admitted { choice, num_cached_tokens, .. } => {
                // Every choice has the same prompt: it is counted once.
                if choice == 0 {
                    self.num_cached_tokens += num_cached_tokens as usize;
                }
                return Vec::new();
            }
            Event::Inexact => {
                self.is_exact = false;
                return Vec::new();
            }
            // Whoever reads the events turns a failure into an error.
            Event::Failed(_) => return Vec::new(),
        };
        let index = self.index(request, choice);
        let choice = &mut self.choices[index];
        choice.num_tokens += piece.tokens.len();
        choice.last = piece.tokens.last().map_or(choice.last, |(token, _)| *token);
        choice.ended |= piece.finish_reason.is_some();
        if let Some(reader) = &mut choice.reader {
            if reader.is_reasoning() {
                self.num_reasoning_tokens += piece.tokens.len();
            }
            piece.spoken = Some(reader.read(&piece.text, piece.finish_reason.is_some()));
            let calls =
                piece.finish_reason == Some(FinishReason::Stop.name()) && reader.has_called();
            piece.finish_reason = if calls { Some("tool_calls") } else { piece.finish_reason };
        }
        if self.options.stream {
            let begun = std::mem::replace(&mut choice.begun, true);
            if let Some(mut voice) = self.voice.take() {
                let (spoken, reason) = (piece.spoken.unwrap_or_default(), piece.finish_reason);
                let chunks = self.describe(index, |answer| voice.say(&spoken, reason, answer));
                self.voice = Some(voice);
                return chunks;
            }
            let piece = if begun { piece } else { self.with_echo(index, piece) };
            let chunk = self.stream_piece(index, piece, begun);
            return chunk.into_iter().map(Chunk::from).collect();
        }
        choice.gathered.text.push_str(&piece.text);
        if let Some(spoken) = piece.spoken {
            choice.gathered.spoken.get_or_insert_default().extend(spoken);
        }
        choice.gathered.tokens.extend(piece.tokens);
        choice.gathered.finish_reason = piece.finish_reason.or(choice.gathered.finish_reason);
        Vec::new()
    }

    /// The first piece of a choice begins with the prompt, where that is wanted.
    fn with_echo(&self, index: usize, piece: Piece) -> Piece {
        let prompt = &self.prompts[index / self.num_choices as usize];
        let Some(echo) = &prompt.echo else { return piece };
        let text = echo.text.clone() + &piece.text;
        let scored = prompt.logprobs.iter().flatten().cloned().map(Some);
        let logprobs = std::iter::once(None).chain(scored).chain(repeat(None));
        let (start, num_echoed) = (echo.tokens.start, echo.tokens.len());
        let echoed = prompt.ids.iter().copied().zip(logprobs).skip(start).take(num_echoed);
        let tokens: Vec<_> = echoed.chain(piece.tokens).collect();
        let begins = tokens.first().map(|(token, _)| self.tokenizer.token_bytes(*token));
        let adds = begins.is_some_and(|bytes| bytes.starts_with(b" ") && !text.starts_with(' '));
        Piece { text, tokens, num_echoed, num_added_bytes: usize::from(adds), ..piece }
    }

    fn stream_piece(&mut self, index: usize, piece: Piece, begun: bool) -> Option<String> {
        let carries_tokens = self.options.return_token_ids || self.options.logprobs;
        let has_text = match &piece.spoken {
            Some(spoken) => !spoken.is_empty(),
            None => !piece.text.is_empty(),
        };
        let says_nothing = !has_text && (piece.tokens.is_empty() || !carries_tokens);
        if says_nothing && piece.finish_reason.is_none() {
            return None;
        }
        let mut offset = std::mem::take(&mut self.choices[index].offset);
        let logprobs = self.logprobs(&piece, &mut offset);
        self.choices[index].offset = offset;
        let is_chat = self.style == Style::Chat;
        let is_empty = piece.text.is_empty() && piece.tokens.is_empty();
        let number = self.part_number(index);
        let answer = self.described(index, &number);
        let delta = || match &piece.spoken {
            Some(spoken) => spoken.delta(&answer),
            None => {
                let content = Some(piece.text.as_str()).filter(|_| !is_empty).map(Some);
                Message { content, ..Message::default() }
            }
        };
        let choice = ChoiceBody {
            index,
            delta: is_chat.then(delta),
            text: Some(piece.text.as_str()).filter(|_| !is_chat),
            logprobs,
            finish_reason: piece.finish_reason,
            token_ids: self.options.return_token_ids.then(|| piece.generated_ids()),
            prompt_token_ids: self.prompt_ids(index).filter(|_| !is_chat && !begun),
            message: None,
        };
        Some(self.chunk(vec![choice]).text(self.head()))
    }

    /// What comes after the last piece: token counts, where they are wanted, and the end.
    pub(crate) fn closing(&self) -> Vec<Chunk> {
        if self.voice.is_some() {
            return Vec::new();
        }
        let counts = self.options.include_usage.then(|| {
            let mut chunk = self.chunk(Vec::new());
            chunk.usage = Some(Some(self.usage()));
            chunk.text(self.head())
        });
        counts.into_iter().chain(["[DONE]".to_owned()]).map(Chunk::from).collect()
    }

    /// What a stream says in place of the rest.
    pub(crate) fn failed(&mut self, error: &ApiError) -> Vec<Chunk> {
        match self.voice.take() {
            Some(mut voice) => self.describe(0, |answer| voice.fail(error, answer)),
            None => vec![error.body().to_string().into()],
        }
    }

    pub(crate) fn finish(mut self) -> String {
        if let Some(embedding) = self.options.embedding {
            let rows = self.prompts.iter().map(|prompt| &*prompt.hidden);
            return embedding.body(&self.model, rows, self.num_prompt_tokens());
        }
        let usage = Some(Some(self.usage()));
        let is_chat = self.style == Style::Chat;
        if let Some(voice) = &self.voice {
            let said = self.choices.first().map(|choice| &choice.gathered);
            let spoken = said.and_then(|said| said.spoken.clone()).unwrap_or_default();
            let reason = said.and_then(|said| said.finish_reason).unwrap_or("stop");
            let whole = self.describe(0, |answer| voice.whole(&spoken, reason, answer));
            return whole.to_string();
        }
        let numbers: Vec<_> = (0..self.choices.len()).map(|it| self.part_number(it)).collect();
        let gathered: Vec<_> = std::mem::take(&mut self.choices)
            .into_iter()
            .enumerate()
            .map(|(index, choice)| self.with_echo(index, choice.gathered))
            .collect();
        let choices = gathered.iter().enumerate().map(|(index, piece)| {
            let said = Some(piece.text.as_str());
            let message = match &piece.spoken {
                Some(spoken) => spoken.message(&self.described(index, &numbers[index])),
                None => Message {
                    role: Some("assistant"),
                    content: Some(said),
                    refusal: Some(()),
                    ..Message::default()
                },
            };
            ChoiceBody {
                index,
                message: is_chat.then_some(message),
                text: said.filter(|_| !is_chat),
                logprobs: self.logprobs(piece, &mut Offset::default()),
                finish_reason: piece.finish_reason,
                token_ids: self.options.return_token_ids.then(|| piece.generated_ids()),
                prompt_token_ids: self.prompt_ids(index).filter(|_| !is_chat),
                delta: None,
            }
        });
        let head = self.head_of(if is_chat { "chat.completion" } else { "text_completion" });
        let prompt_token_ids = self.prompt_ids(0).filter(|_| is_chat);
        Body { usage, prompt_token_ids, choices: choices.collect(), exact: None }.text(&head)
    }

    fn logprobs(&self, piece: &Piece, offset: &mut Offset) -> Option<Value> {
        if !self.options.logprobs || piece.tokens.is_empty() {
            return None;
        }
        let naming = Naming { tokenizer: &self.tokenizer, as_ids: self.options.tokens_as_ids };
        Some(match self.style {
            Style::Chat
            | Style::Messages
            | Style::Responses
            | Style::Infill
            | Style::Embeddings => {
                let content = piece.tokens.iter().filter_map(|(_, of)| of.as_ref());
                let content: Vec<_> = content.map(|of| naming.chat(of)).collect();
                json!({"content": content, "refusal": null})
            }
            Style::Completion => {
                let tokens = piece.tokens.iter().enumerate().map(|(number, (token, of))| Shown {
                    token: *token,
                    logprobs: of.as_ref(),
                    echoed: number < piece.num_echoed,
                    num_added_bytes: if number == 0 { piece.num_added_bytes } else { 0 },
                });
                naming.completion(&tokens.collect::<Vec<_>>(), offset)
            }
        })
    }

    /// As vLLM: a chat has one prompt, so its ids stand beside the choices; a completion's choices
    /// each have their own.
    fn prompt_ids(&self, index: usize) -> Option<Vec<u32>> {
        self.options.return_token_ids.then(|| {
            let ids = &self.prompts[index / self.num_choices as usize].ids;
            ids.iter().map(|token| token.0).collect()
        })
    }

    fn usage(&self) -> Usage {
        let (num_prompt, num_generated) = (self.num_prompt_tokens(), self.num_generated_tokens());
        Usage {
            prompt_tokens: num_prompt,
            completion_tokens: num_generated,
            total_tokens: num_prompt + num_generated,
            prompt_tokens_details: Details { cached_tokens: self.num_cached_tokens },
            exact: self.exact(),
        }
    }

    /// Only where it isn't: bits may have changed on the way.
    fn exact(&self) -> Option<bool> {
        (!self.is_exact).then_some(false)
    }

    fn chunk<'a>(&self, choices: Vec<ChoiceBody<'a>>) -> Body<'a> {
        // The last chunk has the numbers; OpenAI's others have the field.
        let so_far = || self.options.continuous_usage.then(|| self.usage());
        let usage = self.options.include_usage.then(so_far);
        Body { choices, exact: self.exact(), usage, prompt_token_ids: None }
    }

    fn head(&self) -> &str {
        let is_chat = self.style == Style::Chat;
        let object = if is_chat { "chat.completion.chunk" } else { "text_completion" };
        self.head.get_or_init(|| self.head_of(object))
    }

    fn head_of(&self, object: &'static str) -> String {
        let (id, model, created) = (&self.id, &self.model, self.created);
        let system_fingerprint = &self.system_fingerprint;
        Head { id, object, created, model, system_fingerprint }.text()
    }
}

#[cfg(test)]
mod tests;
