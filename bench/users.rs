//! Users of a server of ours: each asks about random tokens and gets an answer of the length that
//! it asked for. Every token is noted when it arrives.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use loadgen::client::request::Endpoint;
use loadgen::client::{Listen, Server};
use loadgen::distribution::{Purpose, random};

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Tokens that prompts are made of: every tokenizer has them, and none of them is special.
const TOKENS: std::ops::Range<u32> = 32..256;

/// Multiples of the golden ratio's fraction lie evenly between whole numbers.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// Between two looks at whether a crowd has come in.
const POLL: Duration = Duration::from_millis(20);

/// One request's sizes, and how urgent it is.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Random tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the answer, exactly: an answer of another length is an error.
    pub answer: u32,
    /// The service tier, where one is named.
    pub tier: Option<&'static str>,
}

/// A server, and how its model is called.
#[derive(Clone, Debug)]
pub struct Users {
    server: Server,
    model: String,
}

/// When tokens arrived, those of a prompt with the first of its answer.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<Vec<(Instant, u64)>>);

/// How long an answer took.
#[derive(Clone, Copy, Debug)]
pub struct AnswerTimes {
    /// From sending the request to the first event with a token.
    pub first: Duration,
    /// From sending the request to the end of the stream.
    pub end: Duration,
}

/// Users who ask again as soon as they are answered.
#[derive(Debug)]
pub struct Crowd {
    tasks: JoinSet<Result<Infallible>>,
    arrivals: Arc<Arrivals>,
    num_begun: Arc<AtomicUsize>,
}

impl Arrivals {
    fn add(&self, num_tokens: usize) {
        let mut arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.push((Instant::now(), num_tokens as u64));
    }

    /// Tokens that arrived in this time.
    pub fn between(&self, from: Instant, until: Instant) -> u64 {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.iter().filter(|(at, _)| (from..until).contains(at)).map(|(_, num)| num).sum()
    }
}

impl Users {
    /// Of the server at `url`.
    ///
    /// # Errors
    /// When it doesn't say what it serves.
    pub async fn of(url: &str) -> Result<Self> {
        let server = Server::new(url, ANSWER_TIMEOUT)?;
        let model = server.first_model().await?;
        Ok(Self { server, model })
    }

    /// The server that is asked, for questions of another kind.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The body of a request: no other number has the same.
    pub fn body(&self, wish: Wish, number: u64) -> Value {
        let mut random = random(Purpose::Conversation, number, 0);
        let prompt: Vec<_> = (0..wish.prompt).map(|_| random.random_range(TOKENS)).collect();
        let mut body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": wish.answer, "ignore_eos": true,
            "temperature": 0, "seed": number, "stream": true, "return_token_ids": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(tier) = wish.tier {
            body["service_tier"] = tier.into();
        }
        body
    }

    /// Asks once.
    ///
    /// # Errors
    /// When the answer doesn't come, or with another number of tokens than was asked for.
    pub async fn ask(&self, wish: Wish, number: u64, arrivals: &Arrivals) -> Result<AnswerTimes> {
        self.ask_noting(wish, number, arrivals, &AtomicUsize::new(0)).await
    }

    async fn ask_noting(
        &self,
        wish: Wish,
        number: u64,
        arrivals: &Arrivals,
        num_begun: &AtomicUsize,
    ) -> Result<AnswerTimes> {
        let body = self.body(wish, number);
        let sent = Instant::now();
        let (mut first, mut num_tokens) = (None, 0);
        let note = Note(|num_new: usize| {
            if first.is_none() {
                first = Some(sent.elapsed());
                num_begun.fetch_add(1, Ordering::Relaxed);
                arrivals.add(wish.prompt);
            }
            num_tokens += num_new;
            arrivals.add(num_new);
        });
        self.server.ask(Endpoint::Completions, &body, note).await?;
        let end = sent.elapsed();
        if num_tokens != wish.answer as usize {
            bail!("an answer has {num_tokens} tokens where {} were asked for", wish.answer);
        }
        Ok(AnswerTimes { first: first.context("an answer without a token")?, end })
    }

    /// So many users at once. Their first answers are parts of what they ask for later, as if they
    /// had been asking for long, so that they don't go on in step.
    pub fn crowd(&self, wish: Wish, num: usize, seed: u64) -> Crowd {
        let (arrivals, num_begun) = (Arc::<Arrivals>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for user in 0..num {
            let (users, arrivals, num_begun) = (self.clone(), arrivals.clone(), num_begun.clone());
            tasks.spawn(async move {
                // However many of the first of them are taken, their parts are spread evenly.
                let part = ((user + 1) as f64 * GOLDEN).fract() * f64::from(wish.answer);
                let mut now = Wish { answer: part.ceil() as u32, ..wish };
                for turn in 0u64.. {
                    let number = (seed << 40) + ((user as u64) << 24) + turn;
                    users.ask_noting(now, number, &arrivals, &num_begun).await?;
                    now = wish;
                }
                bail!("nobody asks so often")
            });
        }
        Crowd { tasks, arrivals, num_begun }
    }
}

impl Crowd {
    /// Tokens of all its users, since it began to ask.
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// Waits until so many of its answers have begun.
    ///
    /// # Errors
    /// When one of its requests fails.
    pub async fn begun(&mut self, num: usize) -> Result<()> {
        let num_begun = Arc::clone(&self.num_begun);
        let begun = async {
            while num_begun.load(Ordering::Relaxed) < num {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        self.beside(begun).await
    }

    /// Tokens that arrive from now on within a window of time, and how many seconds it was.
    ///
    /// # Errors
    /// When one of its requests fails.
    pub async fn count_for(&mut self, window: Duration) -> Result<(f64, f64)> {
        let begin = Instant::now();
        let passes = async {
            tokio::time::sleep(window).await;
            Ok(())
        };
        self.beside(passes).await?;
        let end = Instant::now();
        Ok((self.arrivals.between(begin, end) as f64, (end - begin).as_secs_f64()))
    }

    /// Does `work` while the crowd asks.
    ///
    /// # Errors
    /// When the work fails, or one of the crowd's requests does.
    pub async fn beside<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            Some(failed) = self.tasks.join_next() => match failed {
                Ok(Err(cause)) => Err(cause.context("a user of the crowd")),
                Ok(Ok(never)) => match never {},
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            },
        }
    }
}

/// Hears how many tokens each event brings, unless it brings none.
pub(crate) struct Note<F>(pub(crate) F);

impl<F: FnMut(usize)> Listen for Note<F> {
    fn event(&mut self, event: &Value) {
        let choices = event["choices"].as_array();
        let ids = choices.into_iter().flatten().filter_map(|choice| choice["token_ids"].as_array());
        match ids.map(Vec::len).sum() {
            0 => {}
            num_tokens => (self.0)(num_tokens),
        }
    }
}
