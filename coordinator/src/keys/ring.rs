//! The keys of a running server: read again when their file changes, with what each has used.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use tracing::{info, warn};
use transport::ticks;

use super::bucket::{Left, Taken};
use super::quota::Quota;
use super::{Key, KeyStanding, Limits, OverQuota, Scope, SecretHash, file};
use crate::request::{Priority, Request, Tenant};
use crate::stamp::Stamp;

/// How often the file is looked at. What is revoked is refused after twice as long at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Characters of a secret; a longer one isn't even hashed.
const MAX_SECRET_CHARS: usize = 256;

/// Who asks, and what they may.
#[derive(Debug)]
pub(crate) struct Access {
    /// The key's name, where there is a key.
    pub name: Option<String>,
    pub tenant: Tenant,
    /// How much of the cluster its tenant gets beside others of the same priority.
    pub weight: u32,
    /// The highest priority that they may have.
    pub max_priority: Priority,
    /// How much may be asked for.
    pub limits: Limits,
    key: Option<Key>,
    quota: Arc<Mutex<Quota>>,
}

impl Access {
    /// Of whoever asks where no key is needed: one tenant, who may do everything.
    pub(crate) fn anybody() -> Self {
        Self {
            name: None,
            tenant: "".into(),
            weight: 1,
            max_priority: Priority::Realtime,
            limits: Limits::default(),
            key: None,
            quota: Arc::new(Mutex::new(Quota::new(Instant::now()))),
        }
    }

    /// Of a tenant whose key is no more.
    pub(crate) fn of_tenant(tenant: &str) -> Self {
        Self { tenant: tenant.into(), ..Self::anybody() }
    }

    fn by(key: Key, quota: Arc<Mutex<Quota>>) -> Self {
        Self {
            name: Some(key.name.clone()),
            tenant: key.tenant.as_str().into(),
            weight: key.weight,
            max_priority: key.max_priority,
            limits: key.limits,
            key: Some(key),
            quota,
        }
    }

    pub(crate) fn is_for(&self, scope: Scope) -> bool {
        let scopes = self.key.as_ref().map(|key| &key.scopes);
        scopes.is_none_or(|scopes| scopes.contains(&scope) || scopes.contains(&Scope::Admin))
    }

    /// A request begins; it is open until what is returned is dropped.
    ///
    /// # Errors
    /// When the key has used up its requests, or has as many open as it may have.
    pub(crate) fn open(self: &Arc<Self>) -> Result<Open, OverQuota> {
        self.quota().open(&self.limits, Instant::now())?;
        Ok(Open(Arc::clone(self)))
    }

    /// Takes as many tokens as these requests of a body may use; what they don't comes back when
    /// what is returned is dropped.
    ///
    /// # Errors
    /// When the key has not so many left, or never has.
    pub(crate) fn reserve(self: &Arc<Self>, requests: &[Request]) -> Result<Reserved, OverQuota> {
        let prompts: Vec<_> = requests.iter().map(|request| request.prompt.len() as u64).collect();
        let answer = |it: &Request| u64::from(it.num_choices) * u64::from(it.max_tokens);
        let num = prompts.iter().sum::<u64>() + requests.iter().map(answer).sum::<u64>();
        let taken = self.quota().reserve(num, &self.limits, Instant::now())?;
        Ok(Reserved { access: Arc::clone(self), taken, unused: num, prompts })
    }

    /// Limit and rest of requests and of tokens a minute, where they are limited.
    pub(crate) fn left(&self) -> [Option<(u32, Left)>; 2] {
        self.quota().left(&self.limits, Instant::now())
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Open(Arc<Access>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.quota().close();
    }
}

/// Tokens that were taken for the requests of a body.
#[derive(Debug)]
pub(crate) struct Reserved {
    access: Arc<Access>,
    taken: Option<Taken>,
    unused: u64,
    // Tokens of each prompt that isn't computed yet.
    prompts: Vec<u64>,
}

impl Reserved {
    /// The prompt of request number `request` is computed, whatever comes of it.
    pub(crate) fn prompt(&mut self, request: usize) {
        let num_tokens = self.prompts.get_mut(request).map(std::mem::take);
        self.unused = self.unused.saturating_sub(num_tokens.unwrap_or_default());
    }

    /// Tokens of an answer were computed.
    pub(crate) fn tokens(&mut self, num: usize) {
        self.unused = self.unused.saturating_sub(num as u64);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Self { access, taken, unused, .. } = self;
        if let Some(taken) = *taken {
            access.quota().give_back(*unused, taken, &access.limits, Instant::now());
        }
    }
}

/// Why nobody is let in by a key, or without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyRefusal {
    /// There is none.
    #[error(
        "this server needs an API key: send it as `Authorization: Bearer KEY`, or as `x-api-key`"
    )]
    Missing,
    /// No such one.
    #[error("this API key isn't known here; whoever runs the server can make one")]
    Unknown,
    /// It was good.
    #[error("this API key expired at {0}")]
    Expired(Timestamp),
    /// It was taken back.
    #[error("this API key was revoked at {0}")]
    Revoked(Timestamp),
}

/// The keys of a server. Without a file of them there are none, and anybody may ask.
#[derive(Debug)]
pub(crate) struct Keys {
    anybody: Arc<Access>,
    path: Option<PathBuf>,
    // None where there is no file.
    ring: RwLock<Option<Ring>>,
    // What the file was like when it was last read, right or wrong.
    seen: Mutex<Option<Stamp>>,
}

type Ring = HashMap<SecretHash, Arc<Access>>;

impl Keys {
    /// No keys: anybody may ask.
    pub(crate) fn none() -> Self {
        Self {
            anybody: Arc::new(Access::anybody()),
            path: None,
            ring: RwLock::new(None),
            seen: Mutex::default(),
        }
    }

    /// Those of a file, if need be of one that is yet to come.
    ///
    /// # Errors
    /// When there is a file that can't be read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let keys = Self { path: Some(path.to_owned()), ..Self::none() };
        let stamp = Stamp::of(path);
        if stamp.is_some() {
            keys.install(file::read(path)?);
        }
        *keys.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
        Ok(keys)
    }

    /// These, of no file.
    #[cfg(test)]
    pub(crate) fn of(keys: Vec<Key>) -> Self {
        let ring = Self::none();
        ring.install(keys);
        ring
    }

    /// Whether a request needs one.
    pub(crate) fn are_needed(&self) -> bool {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What anybody may who needs no key.
    pub(crate) fn anybody(&self) -> Arc<Access> {
        Arc::clone(&self.anybody)
    }

    /// What the key of this name allows, or allowed before it was revoked.
    pub(crate) fn of_name(&self, name: &str) -> Option<Arc<Access>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let is_it = |it: &&Arc<Access>| it.name.as_deref() == Some(name);
        ring.as_ref()?.values().find(is_it).cloned()
    }

    /// What this secret, or none, allows.
    ///
    /// # Errors
    /// When it allows nothing.
    pub(crate) fn access(&self, secret: Option<&str>) -> Result<Arc<Access>, KeyRefusal> {
        let found = match &*self.ring.read().unwrap_or_else(PoisonError::into_inner) {
            None => return Ok(self.anybody()),
            Some(keys) => {
                let secret = secret.ok_or(KeyRefusal::Missing)?;
                if secret.len() > MAX_SECRET_CHARS {
                    return Err(KeyRefusal::Unknown);
                }
                keys.get(&SecretHash::of(secret)).cloned().ok_or(KeyRefusal::Unknown)?
            }
        };
        let Some(key) = &found.key else { return Ok(found) };
        match (key.standing(Timestamp::now()), key.expires, key.revoked) {
            (KeyStanding::Expired, Some(at), _) => Err(KeyRefusal::Expired(at)),
            (KeyStanding::Revoked, _, Some(at)) => Err(KeyRefusal::Revoked(at)),
            _ => Ok(found),
        }
    }

    /// Reads the file again whenever it has changed, for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            ticks::pass(LOOK_EVERY).await;
            let keys = Arc::clone(&self);
            // A file system that hangs holds up nobody else.
            if tokio::task::spawn_blocking(move || keys.look()).await.is_err() {
                return;
            }
        }
    }

    /// Reads the file if it has changed. One that can't be read changes nothing: whoever was
    /// refused still is.
    pub(crate) fn look(&self) {
        let Some(path) = &self.path else { return };
        let stamp = Stamp::of(path);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == stamp {
                return;
            }
            *seen = stamp;
        }
        match file::read(path) {
            Ok(keys) => {
                info!(path = %path.display(), num_keys = keys.len(), "API keys were read again");
                self.install(keys);
            }
            Err(cause) => {
                let cause = format!("{cause:#}");
                warn!(cause, "API keys can't be read again: those of before stay in force");
            }
        }
    }

    fn install(&self, keys: Vec<Key>) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        let used = |hash: &SecretHash| Some(Arc::clone(&ring.as_ref()?.get(hash)?.quota));
        let access = |key: Key| {
            // What it has used stays used.
            let quota = used(&key.hash);
            let quota = quota.unwrap_or_else(|| Arc::new(Mutex::new(Quota::new(Instant::now()))));
            (key.hash, Arc::new(Access::by(key, quota)))
        };
        *ring = Some(keys.into_iter().map(access).collect());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::key;
    use super::*;

    fn write(path: &Path, keys: &[Key]) {
        let written = |kept: &mut Vec<Key>| {
            *kept = keys.to_vec();
            Ok(())
        };
        file::edit(path, written).unwrap();
    }

    #[test]
    fn without_a_file_anybody_may_ask_until_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        let keys = Keys::open(&path).unwrap();
        assert!(!keys.are_needed());
        let anybody = keys.access(Some("whatever")).unwrap();
        assert!(anybody.is_for(Scope::Admin) && anybody.limits == Limits::default());

        write(&path, &[key("anna", "sk-anna")]);
        keys.look();
        assert!(keys.are_needed());
        assert_eq!(keys.access(None).unwrap_err(), KeyRefusal::Missing);
        assert_eq!(keys.access(Some("whatever")).unwrap_err(), KeyRefusal::Unknown);
        assert_eq!(keys.access(Some(&"x".repeat(1000))).unwrap_err(), KeyRefusal::Unknown);
        let anna = keys.access(Some("sk-anna")).unwrap();
        assert_eq!((&*anna.tenant, anna.name.as_deref()), ("anna", Some("anna")));
        assert!(anna.is_for(Scope::Inference) && !anna.is_for(Scope::Metrics));

        // A file that is lost opens no door.
        fs::remove_file(&path).unwrap();
        keys.look();
        assert_eq!(keys.access(None).unwrap_err(), KeyRefusal::Missing);
        keys.access(Some("sk-anna")).unwrap();
        // Nor does one without keys.
        write(&path, &[]);
        keys.look();
        assert_eq!(keys.access(Some("sk-anna")).unwrap_err(), KeyRefusal::Unknown);
    }

    #[test]
    fn what_changes_in_the_file_holds_and_what_is_broken_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        let (anna, bert) = (key("anna", "sk-a"), key("bert", "sk-b"));
        write(&path, &[anna.clone(), bert.clone()]);
        let keys = Keys::open(&path).unwrap();

        let now = Timestamp::now();
        let revoked = Key { revoked: Some(now), ..anna };
        write(&path, &[revoked.clone(), bert.clone()]);
        keys.look();
        assert_eq!(keys.access(Some("sk-a")).unwrap_err(), KeyRefusal::Revoked(now));
        keys.access(Some("sk-b")).unwrap();

        fs::write(&path, "[[key]]\nname = \"anna\"\n").unwrap();
        keys.look();
        assert_eq!(keys.access(Some("sk-a")).unwrap_err(), KeyRefusal::Revoked(now));
        keys.access(Some("sk-b")).unwrap();
        Keys::open(&path).unwrap_err();

        write_anew(&path, &[revoked, Key { expires: Some(now), ..bert }]);
        keys.look();
        assert_eq!(keys.access(Some("sk-b")).unwrap_err(), KeyRefusal::Expired(now));
    }

    fn write_anew(path: &Path, keys: &[Key]) {
        fs::remove_file(path).unwrap();
        write(path, keys);
    }

    #[test]
    fn what_was_used_stays_used_when_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        let limits = Limits { requests_per_minute: Some(3), ..Limits::default() };
        let anna = Key { limits, ..key("anna", "sk-a") };
        write(&path, std::slice::from_ref(&anna));
        let keys = Keys::open(&path).unwrap();
        drop(keys.access(Some("sk-a")).unwrap().open().unwrap());
        let limits = Limits { requests_per_minute: Some(2), ..limits };
        write(&path, &[Key { limits, ..anna }, key("bert", "sk-b")]);
        keys.look();
        let anna = keys.access(Some("sk-a")).unwrap();
        drop(anna.open().unwrap());
        assert!(matches!(anna.open(), Err(OverQuota::Requests { limit: 2, .. })));
    }

    #[test]
    fn what_a_body_did_not_use_comes_back_when_it_ends() {
        let limits = Limits { tokens_per_minute: Some(1000), ..Limits::default() };
        let access = Arc::new(Access { limits, ..Access::anybody() });
        // Some of it comes back while the test runs.
        let start = Instant::now();
        let is_left = |num: u32| {
            let left = access.left()[1].unwrap().1.remaining;
            let back = (start.elapsed().as_secs_f64() * 1000.0 / 60.0).ceil() as u32;
            assert!((num..=num + back).contains(&left), "{left} of {num}, {back} came back");
        };
        let body = || [crate::testing::request(1, 100, 50), crate::testing::request(2, 200, 50)];
        let mut reserved = access.reserve(&body()).unwrap();
        is_left(600);
        // One is computed, and says three tokens; the other isn't.
        reserved.prompt(0);
        reserved.prompt(0);
        reserved.tokens(3);
        drop(reserved);
        is_left(897);
        // What never ran used nothing.
        drop(access.reserve(&body()).unwrap());
        is_left(897);
    }
}
