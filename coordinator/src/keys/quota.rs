//! What a key has used of its limits, and what it may use now. Pure.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Left, Taken};

/// What a key may ask for. What isn't said has no limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Requests a minute.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, of prompts and answers. A request counts with the longest answer that it
    /// may get; what it didn't use is given back when it ends.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Requests that are answered at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_streams: Option<u32>,
    /// Tokens of a prompt and its answer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_context_tokens: Option<u32>,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_answer_tokens: Option<u32>,
}

impl Limits {
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, u32)> {
        [
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
            ("max_streams", self.max_streams),
            ("max_context_tokens", self.max_context_tokens),
            ("max_answer_tokens", self.max_answer_tokens),
        ]
        .into_iter()
        .filter_map(|(name, limit)| Some((name, limit?)))
    }
}

/// Why a request has to wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverQuota {
    /// Too many requests in the last minute.
    #[error(
        "this API key may send a request in {wait_s} s: its limit of requests a minute is {limit}"
    )]
    Requests {
        limit: u32,
        /// Whole seconds after which one may be sent.
        wait_s: u32,
    },
    /// Too many at once.
    #[error("this API key may have {limit} requests answered at once; wait for one to end")]
    Streams { limit: u32 },
    /// Too many tokens in the last minute.
    #[error(
        "this API key may use {limit} tokens a minute, of which {remaining} are left; the request \
         may take {num} (prompt and longest answer): send it again in {wait_s} s, or with a \
         smaller max_tokens"
    )]
    Tokens {
        limit: u32,
        remaining: u32,
        /// How many the request may take.
        num: u64,
        /// Whole seconds after which there are enough.
        wait_s: u32,
    },
    /// More tokens than there ever are.
    #[error(
        "the request may take {num} tokens (prompts and longest answers), and this API key may \
         use {limit} a minute (tokens_per_minute): shorten it, or lower max_tokens"
    )]
    TooLarge {
        limit: u32,
        /// How many the request may take.
        num: u64,
    },
}

impl OverQuota {
    /// Its name where refusals are counted.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Requests { .. } => "requests",
            Self::Streams { .. } => "streams",
            Self::Tokens { .. } => "tokens",
            Self::TooLarge { .. } => "too_large",
        }
    }
}

#[derive(Debug)]
pub(super) struct Quota {
    requests: Bucket,
    tokens: Bucket,
    num_open: u32,
}

impl Quota {
    /// Nothing is used.
    pub(super) fn new(now: Instant) -> Self {
        Self { requests: Bucket::new(now), tokens: Bucket::new(now), num_open: 0 }
    }

    /// A request begins: it counts, and is open until [`close`](Self::close).
    ///
    /// # Errors
    /// When there are as many as there may be; it doesn't count then.
    pub(super) fn open(&mut self, limits: &Limits, now: Instant) -> Result<(), OverQuota> {
        if let Some(limit) = limits.max_streams.filter(|limit| self.num_open >= *limit) {
            return Err(OverQuota::Streams { limit });
        }
        if let Some(limit) = limits.requests_per_minute {
            let taken = self.requests.take(1, limit, now);
            taken.map_err(|wait| OverQuota::Requests { limit, wait_s: whole_seconds(wait) })?;
        }
        self.num_open += 1;
        Ok(())
    }

    /// A request has ended.
    pub(super) fn close(&mut self) {
        self.num_open = self.num_open.saturating_sub(1);
    }

    /// Takes as many tokens as a request may use.
    ///
    /// # Errors
    /// When so many aren't left.
    pub(super) fn reserve(
        &mut self,
        num: u64,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<Taken>, OverQuota> {
        let Some(limit) = limits.tokens_per_minute else { return Ok(None) };
        if num > limit.into() {
            return Err(OverQuota::TooLarge { limit, num });
        }
        let taken = self.tokens.take(num, limit, now);
        taken.map(Some).map_err(|wait| {
            let remaining = self.tokens.left(limit, now).remaining;
            OverQuota::Tokens { limit, remaining, num, wait_s: whole_seconds(wait) }
        })
    }

    /// Gives back what a request didn't use of what was reserved for it.
    pub(super) fn give_back(&mut self, num: u64, taken: Taken, limits: &Limits, now: Instant) {
        // Without a limit by now there is nothing to give back to.
        if let Some(limit) = limits.tokens_per_minute {
            self.tokens.give_back(num, taken, limit, now);
        }
    }

    /// Limit and rest of requests and of tokens a minute, where they are limited.
    pub(super) fn left(&mut self, limits: &Limits, now: Instant) -> [Option<(u32, Left)>; 2] {
        let left = |limit: Option<u32>, bucket: &mut Bucket| {
            limit.map(|limit| (limit, bucket.left(limit, now)))
        };
        [
            left(limits.requests_per_minute, &mut self.requests),
            left(limits.tokens_per_minute, &mut self.tokens),
        ]
    }
}

/// Rounded up: who comes back then isn't too early.
fn whole_seconds(wait: Duration) -> u32 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_when_they_begin_and_wait_for_whole_seconds() {
        let start = Instant::now();
        let mut quota = Quota::new(start);
        let limits = Limits { requests_per_minute: Some(40), ..Limits::default() };
        for _ in 0..40 {
            quota.open(&limits, start).unwrap();
        }
        let error = quota.open(&limits, start).unwrap_err();
        // One comes back in 1.5 s.
        assert_eq!(error, OverQuota::Requests { limit: 40, wait_s: 2 });
        quota.open(&limits, start + Duration::from_secs(2)).unwrap();
        let [requests, tokens] = quota.left(&limits, start + Duration::from_secs(3));
        assert_eq!((requests.unwrap().0, requests.unwrap().1.remaining), (40, 1));
        assert_eq!(tokens, None);
    }

    #[test]
    fn so_many_are_open_at_once_and_a_refused_one_counts_nowhere() {
        let now = Instant::now();
        let mut quota = Quota::new(now);
        let limits =
            Limits { max_streams: Some(2), requests_per_minute: Some(3), ..Limits::default() };
        quota.open(&limits, now).unwrap();
        quota.open(&limits, now).unwrap();
        assert_eq!(quota.open(&limits, now), Err(OverQuota::Streams { limit: 2 }));
        quota.close();
        quota.open(&limits, now).unwrap();
        quota.close();
        let over = quota.open(&limits, now);
        assert_eq!(over, Err(OverQuota::Requests { limit: 3, wait_s: 20 }));
        // It isn't open either.
        quota.close();
        let limits = Limits { requests_per_minute: None, ..limits };
        quota.open(&limits, now).unwrap();
        quota.open(&limits, now).unwrap();
        assert!(quota.open(&limits, now).is_err());
    }

    #[test]
    fn tokens_are_reserved_and_what_was_not_used_comes_back() {
        let now = Instant::now();
        let mut quota = Quota::new(now);
        let limits = Limits { tokens_per_minute: Some(600), ..Limits::default() };
        let error = quota.reserve(601, &limits, now).unwrap_err();
        assert_eq!(error, OverQuota::TooLarge { limit: 600, num: 601 });
        let taken = quota.reserve(500, &limits, now).unwrap().unwrap();
        let error = quota.reserve(109, &limits, now).unwrap_err();
        assert_eq!(error, OverQuota::Tokens { limit: 600, remaining: 100, num: 109, wait_s: 1 });
        quota.give_back(450, taken, &limits, now);
        assert_eq!(quota.left(&limits, now)[1].unwrap().1.remaining, 550);
        // Without a limit nothing is counted.
        assert!(quota.reserve(u64::MAX, &Limits::default(), now).unwrap().is_none());
    }
}
