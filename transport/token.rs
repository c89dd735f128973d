//! A join token: what a node must know to join, and how it proves that without telling.
//!
//! `AGJ1.<authority>.<id>.<secret>`: the hash of the authority's key, by which a node knows its
//! coordinator before it proves anything; a name; 130 random bits.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::{digest, hmac};
use bincode::{Decode, Encode};
use rustls::pki_types::CertificateDer;

use crate::certs::{self, Authority};
use crate::error::TransportError;

const VERSION: &str = "AGJ1";

/// Of base 32: five bits each, nothing that an eye takes for another.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

const NUM_SECRET_LETTERS: usize = 26;

/// Letters of a SHA-256.
const NUM_HASH_LETTERS: usize = 52;

/// Letters of a token's name.
const MAX_ID_LETTERS: usize = 16;

/// The name of the token that lies in the coordinator's data directory.
pub const LOCAL_TOKEN: &str = "local";

/// Letters of the name of one that is made: 30 bits.
const NUM_ID_LETTERS: usize = 6;

/// For what a key is derived, so that nothing else gets the same of a secret.
const KEY_LABEL: &[u8] = b"autoglm join key 1";

/// Bytes of a derived key.
const KEY_BYTES: usize = 32;

/// What a node must know to join.
#[derive(Clone)]
pub struct Token {
    authority: String,
    id: String,
    secret: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secret.
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Token {
    /// The token kept in `path`, by which processes of this user join; a new one when there is
    /// none of this authority, or when others could have read it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn load_or_create(path: &Path, authority: &Authority) -> Result<Self, TransportError> {
        let authority = authority.key_hash()?;
        let kept = fs::read_to_string(path).ok().and_then(|text| text.parse::<Self>().ok());
        match kept.filter(|token| token.authority == authority && is_private(path)) {
            Some(token) => Ok(token),
            None => {
                let token = Self {
                    authority,
                    id: LOCAL_TOKEN.into(),
                    secret: letters(NUM_SECRET_LETTERS)?,
                };
                certs::write(path, &format!("{}\n", token.text()))?;
                Ok(token)
            }
        }
    }

    /// Another one for this authority.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(authority: &Authority) -> Result<Self, TransportError> {
        Ok(Self {
            authority: authority.key_hash()?,
            id: letters(NUM_ID_LETTERS)?,
            secret: letters(NUM_SECRET_LETTERS)?,
        })
    }

    /// Its name, which is no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What verifies proofs that it is known.
    pub fn key(&self) -> TokenKey {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(hmac::sign(&secret, KEY_LABEL).as_ref());
        TokenKey(key)
    }

    /// The whole of it, which is secret.
    pub fn text(&self) -> String {
        format!("{VERSION}.{}.{}.{}", self.authority, self.id, self.secret)
    }

    /// Whether this is the authority that the token is of.
    pub(crate) fn is_of(&self, authority: &CertificateDer<'_>) -> bool {
        certs::key_hash(authority).is_ok_and(|hash| hash == self.authority)
    }

    /// Shows that whoever states this knows the token.
    pub(crate) fn prove(&self, statement: &[u8]) -> Proof {
        let mac = hmac::sign(&self.key().hmac(), statement).as_ref().to_vec();
        Proof { token: self.id.clone(), mac }
    }
}

/// What is kept of a token: derived from its secret, which it doesn't tell.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey([u8; KEY_BYTES]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever has it can prove as well.
        f.write_str("TokenKey")
    }
}

impl TokenKey {
    /// As it is kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What [`as_bytes`](Self::as_bytes) gave; none of anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn verify(&self, proof: &Proof, statement: &[u8]) -> bool {
        hmac::verify(&self.hmac(), statement, &proof.mac).is_ok()
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.trim().split('.').collect();
        let [VERSION, authority, id, secret] = parts[..] else {
            return Err("a join token has four parts, AGJ1.AUTHORITY.NAME.SECRET");
        };
        let is_legal = authority.len() == NUM_HASH_LETTERS
            && (1..=MAX_ID_LETTERS).contains(&id.len())
            && secret.len() == NUM_SECRET_LETTERS
            && [authority, id, secret]
                .iter()
                .all(|part| part.bytes().all(|it| LETTERS.contains(&it)));
        if !is_legal {
            return Err("this is a part of a join token, or has been changed: copy all of it");
        }
        Ok(Self { authority: authority.into(), id: id.into(), secret: secret.into() })
    }
}

/// What shows that a token is known, and tells nothing of its secret.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct Proof {
    token: String,
    mac: Vec<u8>,
}

impl Proof {
    #[cfg(test)]
    pub(crate) fn of(token: &str, mac: Vec<u8>) -> Self {
        Self { token: token.into(), mac }
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }
}

/// So many random ones.
fn letters(num_letters: usize) -> Result<String, TransportError> {
    let mut bytes = vec![0; num_letters];
    getrandom::fill(&mut bytes).map_err(|cause| TransportError::Certificates(cause.to_string()))?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect())
}

/// SHA-256 in base 32.
pub(crate) fn hash(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    let bit = |at: usize| {
        hash.as_ref().get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1))
    };
    let letter = |at: usize| (5 * at..5 * at + 5).fold(0, |value, at| 2 * value + bit(at));
    (0..NUM_HASH_LETTERS).map(|at| char::from(LETTERS[letter(at)])).collect()
}

#[cfg(unix)]
fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 == 0)
}

#[cfg(not(unix))]
fn is_private(_path: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_in_base_32() {
        // SHA-256 of nothing, by another program.
        assert_eq!(hash(b""), "4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq");
    }

    #[test]
    fn a_token_is_its_text_and_nothing_like_it() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let token = Token::load_or_create(&dir.path().join("join.token"), &authority).unwrap();
        let text = token.text();
        assert_eq!(text.parse::<Token>().unwrap().text(), text);
        assert!(!format!("{token:?}").contains(&token.secret));
        for wrong in [
            "",
            "AGJ1",
            "AGJ1...",
            &text[..text.len() - 1],
            &text.replace("AGJ1", "AGJ2"),
            &text.replace(".local.", ".."),
            &text.replace(".local.", ".local-too."),
            &text.replace(".local.", &format!(".{}.", "a".repeat(17))),
            &format!("{text}.x"),
            &text.to_uppercase(),
        ] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_kept_of_a_token_verifies_it_and_tells_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let (token, other) = (Token::new(&authority).unwrap(), Token::new(&authority).unwrap());
        assert_ne!(token.id(), other.id());
        let kept = TokenKey::from_bytes(token.key().as_bytes()).unwrap();
        let proof = token.text().parse::<Token>().unwrap().prove(b"this");
        assert!(kept.verify(&proof, b"this") && !kept.verify(&proof, b"that"));
        assert!(!other.key().verify(&proof, b"this"));
        assert!(!kept.as_bytes().windows(8).any(|it| token.secret.as_bytes().starts_with(it)));
        assert!(TokenKey::from_bytes(&[0; 31]).is_none() && !format!("{kept:?}").contains('['));
    }

    #[test]
    fn the_local_token_is_kept_unless_others_may_know_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join.token");
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let load = || Token::load_or_create(&path, &authority).unwrap().text();
        let first = load();
        assert_eq!(load(), first);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(), 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            assert_ne!(load(), first);
            assert_eq!(mode(), 0o600);
        }
        for damaged in ["", "AGJ1"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(load(), load(), "a new one is kept");
        }
        let other = tempfile::tempdir().unwrap();
        let other = Authority::load_or_create(other.path()).unwrap();
        let before = load();
        assert_ne!(Token::load_or_create(&path, &other).unwrap().text(), before);
    }
}
