//! API keys: who may ask, for whom, and how much.
//!
//! A key's secret is 256 random bits, shown once and kept nowhere: the file has a hash of it. One
//! fast hash is right for that. What slow, salted hashes are for is secrets that can be guessed,
//! and nobody guesses 256 bits, whereas the server hashes with every request. Whoever can choose
//! what is hashed still can't choose the hash, so how long it takes to find one tells nothing of
//! those that are kept; two of them are compared in constant time all the same.

mod bucket;
pub mod command;
mod file;
mod quota;
mod ring;

pub(crate) use quota::{Limits, OverQuota};
pub(crate) use ring::{Access, KeyRefusal, Keys, Open, Reserved};

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::request::Priority;

/// What a secret begins with, so that people and scanners know what it is.
const PREFIX: &str = "sk-";

/// Characters of a name: it stands in logs.
const MAX_NAME_CHARS: usize = 64;

/// The queue counts a token in 1024 parts, which are divided by the weight.
const MAX_WEIGHT: u32 = 1000;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Everything under /v1, /tokenize and /detokenize.
    Inference,
    /// /metrics.
    Metrics,
    /// All of it, and the requests of other tenants.
    Admin,
}

impl Scope {
    /// Its name in files, lists and answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// A key as the file has it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// What people call it. It is no secret.
    pub name: String,
    pub hash: SecretHash,
    /// Whose requests they are: tenants share what there is, and nothing of the prefix cache.
    pub tenant: String,
    /// Of the tenant's requests by this key: twice as much, twice the share.
    #[serde(default = "one")]
    pub weight: u32,
    /// What it may be used for: nothing else is answered.
    pub scopes: Vec<Scope>,
    /// The highest that it may ask for.
    #[serde(default = "highest")]
    pub max_priority: Priority,
    #[serde(with = "time")]
    pub created: Timestamp,
    /// Until when it is good.
    #[serde(default, with = "optional_time", skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Since when it isn't, whatever it says.
    #[serde(default, with = "optional_time", skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// How much it may ask for.
    #[serde(default)]
    pub limits: Limits,
}

fn one() -> u32 {
    1
}

fn highest() -> Priority {
    Priority::Realtime
}

/// What a key is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyStanding {
    Valid,
    /// Its time is over.
    Expired,
    Revoked,
}

impl KeyStanding {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl Key {
    /// Whether it is good.
    pub(crate) fn standing(&self, now: Timestamp) -> KeyStanding {
        if self.revoked.is_some() {
            KeyStanding::Revoked
        } else if self.expires.is_some_and(|expires| expires <= now) {
            KeyStanding::Expired
        } else {
            KeyStanding::Valid
        }
    }

    /// # Errors
    /// When requests can't be answered by it; the error says what would be right.
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        for (field, text) in [("name", name), ("tenant", &self.tenant)] {
            if !is_name(text) {
                return Err(format!(
                    "{field} {text:?}: must be 1 to {MAX_NAME_CHARS} letters, digits, - _ . : @"
                ));
            }
        }
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            return Err(format!("key {name}: weight must be from 1 to {MAX_WEIGHT}"));
        }
        if self.scopes.is_empty() {
            return Err(format!("key {name}: scopes must name one of inference, metrics, admin"));
        }
        match self.limits.named().find(|(_, limit)| *limit == 0) {
            Some((limit, _)) => Err(format!(
                "key {name}: {limit} must be at least 1; leave it out for none, or revoke the key"
            )),
            None => Ok(()),
        }
    }
}

fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    (1..=MAX_NAME_CHARS).contains(&text.len()) && text.chars().all(is_plain)
}

/// A new secret.
///
/// # Errors
/// When the system has no random numbers.
fn new_secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; blake3::OUT_LEN];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{}", blake3::Hash::from_bytes(bytes).to_hex()))
}

/// What is kept of a secret. Compared in constant time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SecretHash(blake3::Hash);

impl SecretHash {
    pub(crate) fn of(secret: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("autoglm API key");
        Self(hasher.update(secret.as_bytes()).finalize())
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex()[..8])
    }
}

impl Serialize for SecretHash {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0.to_hex())
    }
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let hash = blake3::Hash::from_hex(text.as_bytes());
        hash.map(Self).map_err(|_| serde::de::Error::custom("hash must be 64 hexadecimal digits"))
    }
}

/// Moments, as in `2027-01-31T12:00:00Z`.
mod time {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(it: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let wrong = || D::Error::custom("must be a time as in 2027-01-31T12:00:00Z");
        String::deserialize(from)?.parse().map_err(|_| wrong())
    }
}

mod optional_time {
    use jiff::Timestamp;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        it: &Option<Timestamp>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match it {
            Some(time) => to.collect_str(time),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        super::time::deserialize(from).map(Some)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key(name: &str, secret: &str) -> Key {
        Key {
            name: name.into(),
            hash: SecretHash::of(secret),
            tenant: name.into(),
            weight: 1,
            scopes: vec![Scope::Inference],
            max_priority: Priority::Realtime,
            created: Timestamp::UNIX_EPOCH,
            expires: None,
            revoked: None,
            limits: Limits::default(),
        }
    }

    #[test]
    fn a_secret_is_256_random_bits_and_its_hash_shows_nothing_of_it() {
        let secrets: Vec<_> = (0..64).map(|_| new_secret().unwrap()).collect();
        let mut bits = [0u8; 32];
        for (number, secret) in secrets.iter().enumerate() {
            let hex = secret.strip_prefix("sk-").unwrap();
            let random = blake3::Hash::from_hex(hex).unwrap();
            bits.iter_mut().zip(random.as_bytes()).for_each(|(seen, byte)| *seen |= byte);
            assert!(!secrets[..number].contains(secret));
            let kept = serde_json::to_string(&key("x", secret)).unwrap();
            assert!(!kept.contains(hex) && !format!("{:?}", key("x", secret)).contains(hex));
        }
        // Each of them is one somewhere.
        assert_eq!(bits, [0xff; 32]);
    }

    #[test]
    fn a_key_is_good_until_it_expires_or_is_revoked() {
        let second = Timestamp::from_second;
        let mut key = key("x", "sk-x");
        assert_eq!(key.standing(second(5).unwrap()), KeyStanding::Valid);
        key.expires = Some(second(9).unwrap());
        assert_eq!(key.standing(second(8).unwrap()), KeyStanding::Valid);
        assert_eq!(key.standing(second(9).unwrap()), KeyStanding::Expired);
        key.revoked = Some(second(7).unwrap());
        assert_eq!(key.standing(second(6).unwrap()), KeyStanding::Revoked);
    }

    #[test]
    fn what_no_request_could_be_answered_by_is_refused() {
        let good = key("anna.b-1:@x_", "sk-x");
        good.check().unwrap();
        let none = Limits { max_answer_tokens: Some(0), ..Limits::default() };
        for (wrong, expected) in [
            (Key { name: String::new(), ..good.clone() }, "name"),
            (Key { name: "a\nb".into(), ..good.clone() }, "letters, digits"),
            (Key { tenant: "x".repeat(65), ..good.clone() }, "tenant"),
            (Key { weight: 0, ..good.clone() }, "from 1 to 1000"),
            (Key { weight: 1001, ..good.clone() }, "from 1 to 1000"),
            (Key { scopes: Vec::new(), ..good.clone() }, "inference, metrics, admin"),
            (Key { limits: none, ..good.clone() }, "max_answer_tokens must be at least 1"),
        ] {
            let said = wrong.check().unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }
}
