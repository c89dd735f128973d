//! What the client of a body has yet to hear: the actor puts it in, the client's task takes it out.
//!
//! Putting in never waits, so that a client that reads slowly slows nobody else. What it has not
//! taken is bounded by what is computed for it: tokens beyond the first few are kept together, in
//! four bytes and their text each (and what was asked for of their logprobs).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use protocol::{Logprobs, RequestId, TokenId};
use ractor::ActorRef;

use crate::actor::Msg;
use crate::cluster::Input;
use crate::request::{Event, SubmitError};

/// Events that are kept apart, each a chunk of its own; then tokens join those before them.
const MAX_APART: usize = 64;

/// An event of one of a body's requests.
#[derive(Debug, PartialEq)]
pub(crate) struct Heard {
    /// The number of the request in its body.
    pub number: usize,
    /// What happened. Of a token, its text is that of those that follow, too.
    pub event: Event,
    /// Tokens that came after it while its client was busy.
    pub more: More,
}

/// Tokens of one choice that follow another.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct More {
    /// In order.
    pub tokens: Vec<TokenId>,
    /// Of each, or none at all.
    pub logprobs: Vec<Logprobs>,
}

impl Heard {
    pub(crate) fn num_tokens(&self) -> usize {
        usize::from(matches!(self.event, Event::Token { .. })) + self.more.tokens.len()
    }
}

/// The actor's end, for one request. Dropped when no more is to come.
#[derive(Debug)]
pub(crate) struct Teller {
    shared: Arc<Mutex<Shared>>,
    number: usize,
}

/// The client's end. Dropped before the answer has ended, it cancels what is left of it.
#[derive(Debug)]
pub(crate) struct Events {
    shared: Arc<Mutex<Shared>>,
    coordinator: ActorRef<Msg>,
}

#[derive(Debug)]
struct Shared {
    // Whether the body's requests wait, once it is known.
    accepted: Option<Result<(), SubmitError>>,
    heard: VecDeque<Heard>,
    // Requests of which more may come; `None` in the place of the others.
    open: Vec<Option<RequestId>>,
    has_left: bool,
    waker: Option<Waker>,
}

/// Both ends for a body of these requests, in order.
pub(crate) fn channel(
    requests: Vec<RequestId>,
    coordinator: ActorRef<Msg>,
) -> (Vec<Teller>, Events) {
    let num_requests = requests.len();
    let shared = Arc::new(Mutex::new(Shared {
        accepted: None,
        heard: VecDeque::new(),
        open: requests.into_iter().map(Some).collect(),
        has_left: false,
        waker: None,
    }));
    let teller = |number| Teller { shared: Arc::clone(&shared), number };
    ((0..num_requests).map(teller).collect(), Events { shared, coordinator })
}

impl Teller {
    /// Whether all the body's requests wait.
    pub(crate) fn accept(&self, result: Result<(), SubmitError>) {
        self.change(|shared| shared.accepted = Some(result));
    }

    /// What happened to the request.
    pub(crate) fn tell(&self, event: Event) {
        self.change(|shared| shared.put(self.number, event));
    }

    /// Whether nobody listens any more.
    pub(crate) fn has_left(&self) -> bool {
        lock(&self.shared).has_left
    }

    fn change(&self, change: impl FnOnce(&mut Shared)) {
        let mut shared = lock(&self.shared);
        if shared.has_left {
            return;
        }
        change(&mut shared);
        let waker = shared.waker.take();
        drop(shared);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.open[self.number] = None;
        let waker = if shared.is_over() { shared.waker.take() } else { None };
        drop(shared);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Events {
    /// Resolves when it is known whether the requests wait. May be dropped while it waits.
    ///
    /// # Errors
    /// When they don't.
    pub(crate) async fn accepted(&mut self) -> Result<(), SubmitError> {
        poll_fn(|context| {
            let mut shared = lock(&self.shared);
            match shared.accepted.take() {
                Some(accepted) => Poll::Ready(accepted),
                None if shared.is_over() => Poll::Ready(Err(SubmitError::ShuttingDown)),
                None => shared.wait(context),
            }
        })
        .await
    }

    /// The next event; none when there is nobody who would tell. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        poll_fn(|context| {
            let mut shared = lock(&self.shared);
            match shared.heard.pop_front() {
                Some(heard) => Poll::Ready(Some(heard)),
                None if shared.is_over() => Poll::Ready(None),
                None => shared.wait(context),
            }
        })
        .await
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.has_left = true;
        let (heard, open) = (std::mem::take(&mut shared.heard), shared.open.clone());
        drop(shared);
        drop(heard);
        for request in open.into_iter().flatten() {
            // Fails only while the coordinator stops.
            let _ = self.coordinator.cast(Msg::Happened(Input::Cancel(request)));
        }
    }
}

impl Shared {
    fn put(&mut self, number: usize, event: Event) {
        let event =
            if self.heard.len() < MAX_APART { Some(event) } else { self.join(number, event) };
        if let Some(event) = event {
            self.heard.push_back(Heard { number, event, more: More::default() });
        }
    }

    /// A token joins those before it of its choice; anything else comes back.
    fn join(&mut self, number: usize, event: Event) -> Option<Event> {
        let Event::Token { choice, token, logprobs, text } = event else { return Some(event) };
        let mut before = self.heard.iter_mut().rev().filter(|heard| heard.number == number);
        let before = before.find_map(|Heard { event, more, .. }| match event {
            Event::Token { choice: other, text, .. } if *other == choice => Some((text, more)),
            _ => None,
        });
        let Some((before, more)) = before else {
            return Some(Event::Token { choice, token, logprobs, text });
        };
        before.push_str(&text);
        more.tokens.push(token);
        more.logprobs.extend(logprobs);
        None
    }

    /// Whether nobody is left who would tell more.
    fn is_over(&self) -> bool {
        self.open.iter().all(Option::is_none)
    }

    fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::FinishReason;
    use crate::testing::inbox;
    use protocol::TokenLogprob;

    fn token(choice: u32, token: u32, text: &str) -> Event {
        Event::Token { choice, token: TokenId(token), logprobs: None, text: text.into() }
    }

    fn finished(choice: u32) -> Event {
        Event::Finished { choice, reason: FinishReason::Length, text: String::new() }
    }

    /// Goal: a client that reads slowly is told everything, and holds no more memory than what it
    /// is told. Method: it reads nothing while two prompts of two choices are answered.
    #[tokio::test]
    async fn what_a_slow_client_has_not_taken_takes_few_bytes_and_is_all_there() {
        const NUM_TOKENS: u32 = 20_000;
        let (coordinator, _inbox) = inbox().await;
        let (tellers, mut events) = channel(vec![RequestId(1), RequestId(2)], coordinator);
        for id in 0..NUM_TOKENS {
            for choice in 0..2 {
                tellers.iter().for_each(|teller| teller.tell(token(choice, id, "abc ")));
            }
        }
        tellers.iter().for_each(|teller| teller.tell(finished(0)));
        let num_bytes: usize = {
            let shared = lock(&events.shared);
            let bytes = |heard: &Heard| {
                let Event::Token { text, .. } = &heard.event else { return 0 };
                text.capacity() + 4 * heard.more.tokens.capacity()
            };
            shared.heard.capacity() * size_of::<Heard>()
                + shared.heard.iter().map(bytes).sum::<usize>()
        };
        // Each token has four bytes, and as many of text; growing may take twice as much.
        assert!(num_bytes < 4 * NUM_TOKENS as usize * 8 * 2 + (64 << 10), "{num_bytes} bytes");
        let mut heard = [[0; 2]; 2];
        let mut has_ended = [false; 2];
        drop(tellers);
        while let Some(Heard { number, event, more }) = events.next().await {
            let Event::Token { choice, token, text, .. } = event else {
                has_ended[number] = true;
                continue;
            };
            let so_far: &mut u32 = &mut heard[number][choice as usize];
            assert!(!(has_ended[number] && choice == 0), "the end comes last");
            for token in std::iter::once(token).chain(more.tokens.iter().copied()) {
                assert_eq!(token.0, *so_far);
                *so_far += 1;
            }
            assert_eq!(text.len(), 4 * (1 + more.tokens.len()));
        }
        assert_eq!((heard, has_ended), ([[NUM_TOKENS; 2]; 2], [true; 2]));
    }

    #[tokio::test]
    async fn whoever_keeps_up_hears_each_token_alone_and_logprobs_stay_with_theirs() {
        let (coordinator, _inbox) = inbox().await;
        let (tellers, mut events) = channel(vec![RequestId(1)], coordinator);
        for id in 0..3 {
            tellers[0].tell(token(0, id, "a"));
            assert_eq!(events.next().await.unwrap().num_tokens(), 1);
        }
        let scored = |id: u32| {
            let chosen = TokenLogprob { token: TokenId(id), logprob: -0.5 };
            let logprobs = Some(Logprobs { chosen, top: Vec::new() });
            Event::Token { choice: 0, token: TokenId(id), logprobs, text: "a".into() }
        };
        (0..MAX_APART as u32 + 9).for_each(|id| tellers[0].tell(scored(id)));
        let mut last = None;
        for _ in 0..MAX_APART {
            last = events.next().await;
        }
        let Heard { more, .. } = last.unwrap();
        assert_eq!(more.tokens.len(), 9);
        let of = |logprobs: &Logprobs| logprobs.chosen.token;
        assert_eq!(more.logprobs.iter().map(of).collect::<Vec<_>>(), more.tokens);
    }

    /// Goal: nothing is computed for nobody, without a task that watches. Method: a client leaves
    /// while one of its three requests is open.
    #[tokio::test]
    async fn whoever_leaves_cancels_what_is_open_and_nothing_else() {
        let (coordinator, mut inbox) = inbox().await;
        let ids = vec![RequestId(1), RequestId(2), RequestId(3)];
        let (mut tellers, mut events) = channel(ids, coordinator);
        tellers[0].accept(Ok(()));
        events.accepted().await.unwrap();
        let open = tellers.remove(1);
        drop(tellers);
        assert!(!open.has_left());
        drop(events);
        let Some(Msg::Happened(Input::Cancel(request))) = inbox.recv().await else { panic!() };
        assert_eq!(request, RequestId(2));
        assert!(open.has_left() && inbox.try_recv().is_err());
        // Nobody keeps what nobody will take.
        open.tell(finished(0));
        assert!(lock(&open.shared).heard.is_empty());
    }

    #[tokio::test]
    async fn a_client_hears_when_nobody_is_left_to_tell() {
        let (coordinator, _inbox) = inbox().await;
        let (tellers, mut events) = channel(vec![RequestId(1)], coordinator);
        let late = tokio::spawn(async move {
            assert_eq!(events.accepted().await, Err(SubmitError::ShuttingDown));
            events.next().await
        });
        tokio::task::yield_now().await;
        drop(tellers);
        assert_eq!(late.await.unwrap(), None);
    }
}
