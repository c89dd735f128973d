//! The file of API keys: read whole, written by replacing it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::Key;
use crate::data_dir;

/// More than a hundred thousand keys.
const MAX_BYTES: u64 = 64 << 20;

const HEAD: &str = "\
# API keys of AutoGLM, as `autoglm key` writes them. A secret stands nowhere, only its hash does.
# A running server reads this file again when it changes.

";

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    key: Vec<Key>,
}

/// The keys of `path`.
///
/// # Errors
/// When there is no such file, or not all of it is right.
pub(super) fn read(path: &Path) -> Result<Vec<Key>> {
    let found = || format!("API keys in {}", path.display());
    let num_bytes = fs::metadata(path).with_context(found)?.len();
    ensure!(num_bytes <= MAX_BYTES, "{}: at most {MAX_BYTES} bytes", found());
    let text = fs::read_to_string(path).with_context(found)?;
    parse(&text).with_context(found)
}

fn parse(text: &str) -> Result<Vec<Key>> {
    // Its line is named and not shown: logs are no place for what somebody took for a key.
    let Contents { key: keys } = toml::from_str(text).map_err(|cause| {
        let before = cause.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        anyhow!("line {}: {}", before.matches('\n').count() + 1, cause.message())
    })?;
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    for key in &keys {
        key.check().map_err(anyhow::Error::msg)?;
        ensure!(names.insert(&key.name), "there are two keys named {}", key.name);
        ensure!(hashes.insert(key.hash), "key {} has the hash of another", key.name);
    }
    Ok(keys)
}

/// Changes the keys of `path`, which need not be there yet. Whoever reads it meanwhile finds them
/// as they were or as they are; whoever changes them too waits.
///
/// # Errors
/// When `change` says no, or the file can't be read or written.
pub(super) fn edit<T>(path: &Path, change: impl FnOnce(&mut Vec<Key>) -> Result<T>) -> Result<T> {
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let lock_path = PathBuf::from(format!("{}.lock", path.display()));
    let lock =
        File::create(&lock_path).with_context(|| format!("can't write {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("can't lock {}", lock_path.display()))?;
    let mut keys = match path.try_exists()? {
        true => read(&path)?,
        false => Vec::new(),
    };
    let changed = change(&mut keys)?;
    let text = format!("{HEAD}{}", toml::to_string(&Contents { key: keys })?);
    // What can't be read again must not take the place of what can.
    parse(&text)?;
    data_dir::replace(&path, text.as_bytes())
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::tests::key;
    use super::super::{Limits, Scope};
    use super::*;
    use crate::request::Priority;

    #[test]
    fn keys_come_back_as_they_were_written_and_nobody_else_may_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        let all = Key {
            weight: 3,
            scopes: vec![Scope::Inference, Scope::Admin],
            max_priority: Priority::Offline,
            expires: Some(Timestamp::from_second(1_900_000_000).unwrap()),
            revoked: Some(Timestamp::from_second(1_800_000_000).unwrap()),
            limits: Limits { tokens_per_minute: Some(5), ..Limits::default() },
            ..key("all", "sk-1")
        };
        let wanted = [all, key("few", "sk-2")];
        edit(&path, |keys| {
            keys.extend(wanted.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(read(&path).unwrap(), wanted);
        edit(&path, |keys| {
            keys.truncate(1);
            Ok(())
        })
        .unwrap();
        assert_eq!(read(&path).unwrap(), wanted[..1]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        // Only the file and its lock are left.
        assert_eq!(dir.path().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_and_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        edit(&path, |keys| {
            keys.push(key("x", "sk-1"));
            Ok(())
        })
        .unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for (change, expected) in [
            (good.replace("weight = 1", "weight = 0"), "weight must be from 1"),
            (good.replace("weight", "wait"), "unknown field `wait`"),
            (good.replace("hash = \"", "hash = \"x"), "64 hexadecimal digits"),
            (good.replace("inference", "inferences"), "inferences"),
            (good.replace("created = \"", "created = \"x"), "line 11: must be a time"),
            (format!("{good}{}", &good[HEAD.len()..]), "two keys named x"),
            (
                format!("{good}{}", good[HEAD.len()..].replace("\"x\"", "\"y\"")),
                "key y has the hash of another",
            ),
        ] {
            assert_ne!(change, good, "{expected}");
            fs::write(&path, &change).unwrap();
            let said = format!("{:#}", read(&path).unwrap_err());
            assert!(said.contains(expected) && said.contains("keys.toml"), "{said}");
            edit(&path, |keys| {
                keys.clear();
                Ok(())
            })
            .unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), change);
        }
        fs::write(&path, &good).unwrap();
        // Two of one name are refused before they are written.
        edit(&path, |keys| {
            keys.push(key("x", "sk-2"));
            Ok(())
        })
        .unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), good);
    }

    #[test]
    fn changes_at_once_are_all_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let (name, secret) = (format!("k{number}"), format!("sk-{number}"));
                    edit(path, |keys| {
                        keys.push(key(&name, &secret));
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(read(&path).unwrap().len(), 8);
    }
}
