//! Who was turned away, said once: whoever tries again and again fills no log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this time it is news again.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Addresses and reasons that are remembered.
const MAX_REMEMBERED: usize = 1024;

/// What was said of late.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<(IpAddr, String), Instant>>);

impl Refusals {
    /// Whether it has not been said lately that this address was refused for this reason. Where
    /// more is refused than can be remembered, the rest is no news.
    pub fn is_news(&self, ip: IpAddr, reason: &str, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (ip, reason.to_owned());
        let is_recent = |since: &Instant| now.saturating_duration_since(*since) < FORGET_AFTER;
        if said.get(&key).is_some_and(is_recent) {
            return false;
        }
        if said.len() >= MAX_REMEMBERED {
            said.retain(|_, since| is_recent(since));
        }
        let is_room = said.len() < MAX_REMEMBERED;
        if is_room {
            said.insert(key, now);
        }
        is_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_once_and_again_when_it_is_forgotten() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let ip = |number: u32| IpAddr::from(number.to_be_bytes());
        assert!(refusals.is_news(ip(1), "why", now) && !refusals.is_news(ip(1), "why", now));
        assert!(refusals.is_news(ip(1), "another reason", now));
        let num_news = (0..5000).filter(|it| refusals.is_news(ip(*it), "why", now)).count();
        assert_eq!(num_news + 2, MAX_REMEMBERED, "no flood is remembered whole");
        let later = now + FORGET_AFTER;
        assert!(refusals.is_news(ip(1), "why", later) && refusals.is_news(ip(4999), "why", later));
    }
}
