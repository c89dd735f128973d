//! Events in, bodies out: whole answers and the chunks of streams.

use std::iter::repeat;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::{Logprobs, TokenId};
use serde_json::{Value, json};

use super::body::{Body, Choice as ChoiceBody, Details, Message, Usage};
use super::logprobs::{Naming, Offset, Shown};
use super::{Echo, Options, Parsed};
use crate::events::Heard;
use crate::request::Event;
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
    // Tokens of the prompts that the prefix cache had.
    num_cached_tokens: usize,
    // Whether all of it comes from one device class.
    is_exact: bool,
}

#[derive(Debug)]
struct Prompt {
    ids: Arc<[TokenId]>,
    logprobs: Option<Vec<Logprobs>>,
    echo: Option<Echo>,
}

#[derive(Debug, Default)]
struct Choice {
    begun: bool,
    ended: bool,
    num_tokens: usize,
    // Where the next token begins in its text.
    offset: Offset,
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
        let mut echoes = parsed.echoes.iter().cloned();
        let mut prompt = |request: &crate::request::Request| Prompt {
            ids: request.prompt.clone(),
            logprobs: None,
            echo: echoes.next(),
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
            prompts: parsed.requests.iter().map(&mut prompt).collect(),
            choices: (0..parsed.requests.len() * num_choices as usize)
                .map(|_| Choice::default())
                .collect(),
            num_cached_tokens: 0,
            is_exact: true,
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

    /// Whether every choice has ended: no event is to come.
    pub fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.ended)
    }

    /// Choices of all requests together.
    pub fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// The number among all choices of a choice of request number `request`.
    pub fn index(&self, request: usize, choice: u32) -> usize {
        request * self.num_choices as usize + choice as usize
    }

    /// What a stream says before the first token: who speaks, in a chat.
    pub fn opening(&self) -> Vec<String> {
        if self.style == Style::Completion {
            return Vec::new();
        }
        let chunk = |index| {
            let said = Message { role: Some("assistant"), content: Some(""), refusal: None };
            let delta = Some(said);
            let mut chunk = self.chunk(vec![ChoiceBody { index, delta, ..ChoiceBody::default() }]);
            chunk.prompt_token_ids = self.prompt_ids(0).filter(|_| index == 0);
            chunk.text()
        };
        (0..self.choices.len()).map(chunk).collect()
    }

    /// Takes in what was heard; the chunk that it makes of a stream.
    pub fn take(&mut self, heard: Heard) -> Option<String> {
        let Heard { number: request, event, more } = heard;
        let (choice, piece) = match event {
            Event::Prompt(logprobs) => {
                self.prompts[request].logprobs = Some(logprobs);
                return None;
            }
            Event::Token { choice, token, logprobs: first, text } => {
                let logprobs = more.logprobs.into_iter().map(Some).chain(repeat(None));
                let mut tokens = vec![(token, first)];
                tokens.extend(more.tokens.into_iter().zip(logprobs));
                (choice, Piece { text, tokens, ..Piece::default() })
            }
            Event::Finished { choice, reason, text } => {
                let finish_reason = Some(reason.name());
                (choice, Piece { text, finish_reason, ..Piece::default() })
            }
            Event::Admitted { choice, num_cached_tokens } => {
                // Every choice has the same prompt: it is counted once.
                if choice == 0 {
                    self.num_cached_tokens += num_cached_tokens as usize;
                }
                return None;
            }
            Event::Inexact => {
                self.is_exact = false;
                return None;
            }
            // Whoever reads the events turns a failure into an error.
            Event::Failed(_) => return None,
        };
        let index = self.index(request, choice);
        let choice = &mut self.choices[index];
        choice.num_tokens += piece.tokens.len();
        choice.ended |= piece.finish_reason.is_some();
        if self.options.stream {
            let begun = std::mem::replace(&mut choice.begun, true);
            let piece = if begun { piece } else { self.with_echo(index, piece) };
            return self.stream_piece(index, piece, begun);
        }
        choice.gathered.text.push_str(&piece.text);
        choice.gathered.tokens.extend(piece.tokens);
        choice.gathered.finish_reason = piece.finish_reason.or(choice.gathered.finish_reason);
        None
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
        let says_nothing = piece.text.is_empty() && (piece.tokens.is_empty() || !carries_tokens);
        if says_nothing && piece.finish_reason.is_none() {
            return None;
        }
        let mut offset = std::mem::take(&mut self.choices[index].offset);
        let logprobs = self.logprobs(&piece, &mut offset);
        self.choices[index].offset = offset;
        let is_chat = self.style == Style::Chat;
        let is_empty = piece.text.is_empty() && piece.tokens.is_empty();
        let content = Some(piece.text.as_str()).filter(|_| !is_empty);
        let choice = ChoiceBody {
            index,
            delta: is_chat.then(|| Message { content, ..Message::default() }),
            text: Some(piece.text.as_str()).filter(|_| !is_chat),
            logprobs,
            finish_reason: piece.finish_reason,
            token_ids: self.options.return_token_ids.then(|| piece.generated_ids()),
            prompt_token_ids: self.prompt_ids(index).filter(|_| !is_chat && !begun),
            message: None,
        };
        Some(self.chunk(vec![choice]).text())
    }

    /// The chunk after the last, where token counts are wanted.
    pub fn closing(&self) -> Option<String> {
        self.options.include_usage.then(|| {
            let mut chunk = self.chunk(Vec::new());
            chunk.usage = Some(Some(self.usage()));
            chunk.text()
        })
    }

    /// The whole answer.
    pub fn finish(mut self) -> String {
        let usage = Some(Some(self.usage()));
        let is_chat = self.style == Style::Chat;
        let gathered: Vec<_> = std::mem::take(&mut self.choices)
            .into_iter()
            .enumerate()
            .map(|(index, choice)| self.with_echo(index, choice.gathered))
            .collect();
        let choices = gathered.iter().enumerate().map(|(index, piece)| {
            let said = Some(piece.text.as_str());
            ChoiceBody {
                index,
                message: is_chat.then_some(Message {
                    role: Some("assistant"),
                    content: said,
                    refusal: Some(()),
                }),
                text: said.filter(|_| !is_chat),
                logprobs: self.logprobs(piece, &mut Offset::default()),
                finish_reason: piece.finish_reason,
                token_ids: self.options.return_token_ids.then(|| piece.generated_ids()),
                prompt_token_ids: self.prompt_ids(index).filter(|_| !is_chat),
                delta: None,
            }
        });
        let object = if is_chat { "chat.completion" } else { "text_completion" };
        let prompt_token_ids = self.prompt_ids(0).filter(|_| is_chat);
        Body { usage, prompt_token_ids, ..self.body(object, choices.collect()) }.text()
    }

    fn logprobs(&self, piece: &Piece, offset: &mut Offset) -> Option<Value> {
        if !self.options.logprobs || piece.tokens.is_empty() {
            return None;
        }
        let naming = Naming { tokenizer: &self.tokenizer, as_ids: self.options.tokens_as_ids };
        Some(match self.style {
            Style::Chat => {
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

    fn chunk<'a>(&'a self, choices: Vec<ChoiceBody<'a>>) -> Body<'a> {
        let object =
            if self.style == Style::Chat { "chat.completion.chunk" } else { "text_completion" };
        // The last chunk has the numbers; OpenAI's others have the field.
        let so_far = || self.options.continuous_usage.then(|| self.usage());
        let usage = self.options.include_usage.then(so_far);
        Body { usage, exact: self.exact(), ..self.body(object, choices) }
    }

    fn body<'a>(&'a self, object: &'static str, choices: Vec<ChoiceBody<'a>>) -> Body<'a> {
        Body {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.system_fingerprint,
            choices,
            exact: None,
            usage: None,
            prompt_token_ids: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::More;
    use crate::openai::testing::Served;
    use crate::openai::{parse_chat, parse_completion};
    use crate::request::FinishReason;
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
        let expected =
            json!([{"index": 1, "delta": {}, "logprobs": null, "finish_reason": "stop"}]);
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
        let (mut answer, _) =
            answer(Style::Chat, json!({"stream": true, "stream_options": options}));
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
        let offsets: Vec<u64> =
            offsets.as_array().unwrap().iter().flat_map(Value::as_u64).collect();
        assert_eq!((offsets[0], offsets[1]), (0, 1));
        // The end token shows nothing, so what follows it begins where it does.
        assert_eq!(offsets[offsets.len() - 2..], [2, 2]);
    }
}
