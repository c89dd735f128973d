//! Those who ask: what each hears is compared, event by event, with what it should hear.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coordinator::request::{
    AnswerText, Event, FinishReason, Priority, Request, RequestError, TokenText,
};
use protocol::{BLOCK_TOKENS, ModelId, RequestId, SamplingParams, TokenId};

use super::model;
use super::random::mix;
use super::report::Tally;
use super::scenario::Ask;

/// Everybody who has asked.
#[derive(Debug, Default)]
pub struct Clients {
    all: HashMap<RequestId, Client>,
    num_open: [usize; Priority::ALL.len()],
    /// Tokens that were told, over all.
    pub num_tokens: u64,
}

#[derive(Debug)]
struct Client {
    ask: Ask,
    sampling: SamplingParams,
    asked_at: Duration,
    is_open: bool,
    is_exact: bool,
    has_prompt: bool,
    choices: Vec<Choice>,
    num_events: u32,
    // Steps with it that failed, and whether it was alone in one of them.
    num_failed_steps: u32,
    failed_alone: bool,
}

/// One answer so far.
#[derive(Clone, Debug, Default)]
struct Choice {
    is_admitted: bool,
    num_tokens: u32,
    row: u64,
    history: u64,
    class: Option<u64>,
    last_at: Duration,
    // How it must end, with which text, now.
    ends: Option<(FinishReason, String)>,
    has_ended: bool,
}

/// Text that tells whether its state was kept.
#[derive(Clone, Debug)]
struct Words {
    stop_every: u32,
    num: u32,
}

impl Words {
    fn is_stop(&self, token: TokenId) -> bool {
        self.stop_every > 0 && token.0.is_multiple_of(self.stop_every)
    }
}

impl AnswerText for Words {
    fn push(&mut self, token: TokenId) -> TokenText {
        self.num += 1;
        TokenText {
            text: format!("{}:{token} ", self.num),
            stopped: self.is_stop(token).then_some(0),
        }
    }

    fn finish(&mut self) -> String {
        format!("after {}", self.num)
    }

    fn copy(&self) -> Box<dyn AnswerText> {
        Box::new(self.clone())
    }
}

/// What is going on when an event is told.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub now: Duration,
    /// Of the pipeline whose frame was taken in.
    pub class: Option<u64>,
    /// Whether waiting for a pipeline has taken as long as it may.
    pub may_give_up: bool,
    pub has_classes: bool,
    /// Classes of the pipelines that serve, and their blocks.
    pub serving: &'a [(u64, usize)],
    pub max_pipeline_wait: Duration,
}

impl Moment<'_> {
    fn serves(&self, class: u64, num_tokens: usize) -> bool {
        let holds = |num_blocks: usize| num_tokens <= num_blocks * BLOCK_TOKENS;
        self.serving.iter().any(|(of, num_blocks)| *of == class && holds(*num_blocks))
    }
}

impl Clients {
    /// A client asks; the request that it sends.
    pub fn ask(&mut self, id: RequestId, ask: &Ask, turn: u32, at: (Duration, Instant)) -> Request {
        let (now, start) = at;
        let sampling = SamplingParams {
            seed: mix(id.0, 77),
            // Stages fail at this position.
            top_k: ask.fails_at.unwrap_or(0),
            num_logprobs: ask.logprobs.then_some(0),
            num_prompt_logprobs: ask.scores_prompt.then_some(0),
            ..SamplingParams::default()
        };
        let prompt = ask.prompt.iter();
        let first = Choice {
            row: prompt.clone().fold(model::ROOT, |row, token| model::row(row, *token)),
            history: prompt.fold(0, |before, token| model::history(before, *token, true)),
            ..Choice::default()
        };
        let client = Client {
            ask: ask.clone(),
            sampling: sampling.clone(),
            asked_at: now,
            is_open: true,
            is_exact: true,
            has_prompt: !ask.scores_prompt || ask.prompt.len() < 2,
            choices: vec![first; ask.num_choices as usize],
            num_events: 0,
            num_failed_steps: 0,
            failed_alone: false,
        };
        self.num_open[ask.priority.index()] += 1;
        self.all.insert(id, client);
        Request {
            id,
            model: ModelId::default(),
            prompt: ask.prompt.clone(),
            num_choices: ask.num_choices,
            sampling,
            max_tokens: ask.max_tokens,
            stop_tokens: ask.stop_tokens.clone(),
            text: Box::new(Words { stop_every: ask.stop_every, num: 0 }),
            constraint: None,
            tells_hidden: false,
            trace: None,
            priority: ask.sent_as.unwrap_or(ask.priority),
            tenant: ask.tenant.clone(),
            weight: ask.weight,
            deadline: ask.deadline.map(|after| start + now + after),
            require_exact: ask.require_exact,
            turn,
            resumed: None,
        }
    }

    /// Requests that were taken and have not ended.
    pub fn num_open(&self) -> usize {
        self.num_open.iter().sum()
    }

    pub fn num_open_of(&self, priority: Priority) -> usize {
        self.num_open[priority.index()]
    }

    /// Whether this one has not ended.
    pub fn is_open(&self, id: RequestId) -> bool {
        self.all.get(&id).is_some_and(|client| client.is_open)
    }

    pub fn ask_of(&self, id: RequestId) -> &Ask {
        &self.all[&id].ask
    }

    pub fn asked_at(&self, id: RequestId) -> Duration {
        self.all[&id].asked_at
    }

    /// Some of those who wait for something still.
    pub fn open(&self) -> Vec<RequestId> {
        let open = self.all.iter().filter(|(_, client)| client.is_open);
        let mut open: Vec<_> = open.map(|(id, _)| *id).collect();
        open.sort_unstable();
        open
    }

    /// It was refused, or has gone away: it hears nothing more.
    pub fn close(&mut self, id: RequestId) {
        let client = self.all.get_mut(&id).expect("it asked");
        self.num_open[client.ask.priority.index()] -= usize::from(client.is_open);
        client.is_open = false;
    }

    /// A step failed that held it.
    pub fn step_failed(&mut self, id: RequestId, is_alone: bool) {
        if let Some(client) = self.all.get_mut(&id) {
            client.num_failed_steps += 1;
            client.failed_alone |= is_alone;
        }
    }

    /// It hears something. Whether it goes away now.
    ///
    /// # Errors
    /// When that isn't what it should hear.
    pub fn hear(
        &mut self,
        id: RequestId,
        event: &Event,
        moment: Moment<'_>,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let client = self.all.get_mut(&id).ok_or("nobody asked")?;
        if !client.is_open {
            return Err("it had ended".into());
        }
        let was_open = client.num_ended();
        client.hear(event, moment, tally)?;
        self.num_tokens += u64::from(matches!(event, Event::Token { .. }));
        if was_open < client.choices.len() && client.num_ended() == client.choices.len() {
            tally.answered(client.ask.priority);
            self.num_open[client.ask.priority.index()] -= 1;
            client.is_open = false;
        }
        client.num_events += 1;
        Ok(client.is_open && client.ask.leaves_after == Some(client.num_events))
    }
}

impl Client {
    fn num_ended(&self) -> usize {
        self.choices.iter().filter(|choice| choice.has_ended).count()
    }

    fn hear(&mut self, event: &Event, moment: Moment<'_>, tally: &mut Tally) -> Result<(), String> {
        match event {
            Event::Admitted { choice, .. } => {
                let choice = self.choices.get_mut(*choice as usize).ok_or("no such choice")?;
                if std::mem::replace(&mut choice.is_admitted, true) {
                    return Err("admitted twice".into());
                }
                tally.admitted(self.ask.priority, moment.now - self.asked_at);
                tally.computed(&self.ask.tenant, self.ask.prompt.len() as u64);
            }
            Event::Inexact if !moment.has_classes => return Err("inexact, in one class".into()),
            Event::Inexact if self.ask.require_exact => {
                return Err("inexact, but it insists".into());
            }
            Event::Inexact => {
                let num_tokens = self.ask.num_tokens();
                let begun = self.choices.iter().filter_map(|choice| choice.class);
                let mut begun = begun.peekable();
                if self.is_exact
                    && begun.peek().is_some()
                    && begun.all(|it| moment.serves(it, num_tokens))
                {
                    return Err("inexact, while pipelines of its class serve".into());
                }
                self.is_exact = false;
            }
            Event::Hidden(_) => return Err("a hidden state, which nobody wants".into()),
            Event::Prompt(logprobs) => {
                if std::mem::replace(&mut self.has_prompt, true) {
                    return Err("its prompt's logprobs come twice or unasked".into());
                }
                let class = moment.class.ok_or("logprobs come of no step")?;
                let mut row = model::ROOT;
                let expected = self.ask.prompt.windows(2).map(|pair| {
                    row = model::row(row, pair[0]);
                    model::logprobs(row, pair[1], class)
                });
                if !expected.eq(logprobs.iter().cloned()) {
                    return Err("other logprobs of its prompt".into());
                }
            }
            Event::Token { choice, token, logprobs, text } => {
                let class = moment.class.ok_or("a token comes of no step")?;
                let index = *choice;
                let expected = self.expected(index, class)?;
                if expected.0 != *token {
                    return Err(format!("choice {index}: token {token}, not {}", expected.0));
                }
                if *logprobs != expected.1 {
                    return Err(format!("choice {index}: other logprobs of token {token}"));
                }
                self.take(index, *token, text, moment, tally)?;
            }
            Event::Finished { choice, reason, text } => self.finish(*choice, *reason, text)?,
            Event::Failed(error) => {
                self.fail(error, moment)?;
                tally.failed(self.ask.priority, error.kind());
                self.choices.iter_mut().for_each(|choice| choice.has_ended = true);
            }
        }
        Ok(())
    }

    /// The next token of a choice, in this class.
    fn expected(
        &self,
        index: u32,
        class: u64,
    ) -> Result<(TokenId, Option<protocol::Logprobs>), String> {
        let choice = self.choices.get(index as usize).ok_or("no such choice")?;
        if !choice.is_admitted || choice.ends.is_some() {
            return Err("a token of a choice that isn't admitted, or must end".into());
        }
        if index == 0 && !self.has_prompt {
            return Err("a token before the logprobs of the prompt".into());
        }
        if choice.class.is_some_and(|first| first != class) && self.is_exact {
            return Err("it goes on in another class, and nothing is said".into());
        }
        let position = self.ask.prompt.len() as u32 + choice.num_tokens;
        let sampling = SamplingParams { choice: index, ..self.sampling.clone() };
        let token = model::sample(choice.row, choice.history, &sampling, position, class);
        let logprobs = self.ask.logprobs.then(|| model::logprobs(choice.row, token, class));
        Ok((token, logprobs))
    }

    fn take(
        &mut self,
        index: u32,
        token: TokenId,
        text: &str,
        moment: Moment<'_>,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let choice = &mut self.choices[index as usize];
        let priority = self.ask.priority;
        if choice.num_tokens == 0 {
            tally.first_token(priority, moment.now - self.asked_at);
        } else {
            tally.next_token(priority, moment.now - choice.last_at);
        }
        tally.computed(&self.ask.tenant, 1);
        choice.last_at = moment.now;
        choice.class.get_or_insert(moment.class.unwrap_or_default());
        choice.num_tokens += 1;
        choice.row = model::row(choice.row, token);
        choice.history = model::history(choice.history, token, false);
        let n = choice.num_tokens;
        let words = Words { stop_every: self.ask.stop_every, num: n };
        let is_end = self.ask.stop_tokens.contains(&token);
        let expected = if is_end { String::new() } else { format!("{n}:{token} ") };
        if text != expected {
            return Err(format!("choice {index}: text {text:?}, not {expected:?}"));
        }
        choice.ends = if is_end {
            Some((FinishReason::Stop, format!("after {}", n - 1)))
        } else if words.is_stop(token) {
            Some((FinishReason::StopString(0), String::new()))
        } else {
            (n == self.ask.max_tokens).then(|| (FinishReason::Length, format!("after {n}")))
        };
        Ok(())
    }

    fn finish(&mut self, index: u32, reason: FinishReason, text: &str) -> Result<(), String> {
        let choice = self.choices.get_mut(index as usize).ok_or("no such choice")?;
        let is_scored = self.ask.max_tokens == 0;
        let expected = match choice.ends.clone() {
            None if is_scored && (index > 0 || self.has_prompt) => {
                (FinishReason::Length, String::new())
            }
            None => return Err(format!("choice {index} ends before its end")),
            Some(expected) => expected,
        };
        if choice.has_ended || expected != (reason, text.to_owned()) {
            return Err(format!("choice {index} ends with {reason:?} {text:?}, not {expected:?}"));
        }
        choice.has_ended = true;
        Ok(())
    }

    /// Whether no pipeline can take it, long enough after it came.
    fn is_stranded(&self, moment: Moment<'_>) -> bool {
        let num_tokens = self.ask.num_tokens();
        let is_taken = |(class, num_blocks): &(u64, usize)| {
            let begun = self.choices.iter().filter_map(|choice| choice.class);
            let may_go_on = begun.clone().all(|begun| begun == *class);
            num_tokens <= num_blocks * BLOCK_TOKENS && (may_go_on || !self.ask.require_exact)
        };
        let has_waited = self.asked_at + moment.max_pipeline_wait <= moment.now;
        has_waited && !moment.serving.iter().any(is_taken)
    }

    /// Whether this is a reason to fail.
    fn fail(&self, error: &RequestError, moment: Moment<'_>) -> Result<(), String> {
        let is_due = match error {
            RequestError::NoPipeline { .. } => moment.may_give_up || self.is_stranded(moment),
            RequestError::DeadlineExceeded(_) => {
                self.ask.deadline.is_some_and(|after| self.asked_at + after <= moment.now)
            }
            RequestError::StepFailed(_) => self.failed_alone || self.num_failed_steps > 3,
            _ => false,
        };
        if is_due { Ok(()) } else { Err(format!("it fails without cause: {error}")) }
    }
}
