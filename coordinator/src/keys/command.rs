//! `autoglm key`: makes, lists and revokes API keys. A running server notices.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{Key, KeyStanding, Limits, Scope, SecretHash, file, new_secret};
use crate::data_dir;
use crate::request::Priority;

/// Nobody means more than a hundred years.
const MAX_LIFE_S: i64 = 100 * 365 * 86_400;

/// Makes, lists and revokes API keys.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The file of keys [default: keys.toml in the data directory].
    #[arg(long, value_name = "FILE", global = true)]
    api_keys: Option<PathBuf>,
    /// The server's data directory [default: under your home directory].
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// The server's file of the form of cluster.toml; flags win over it.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a key and prints it, this once: only a hash of it is kept.
    Create(Create),
    /// Lists the keys, without their secrets.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Takes a key back: requests with it are refused within two seconds.
    Revoke {
        /// The key's name.
        name: String,
    },
}

#[derive(Args)]
struct Create {
    /// What people call it.
    #[arg(long)]
    name: String,
    /// Whose requests they are [default: the key's name].
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Twice as much, twice the share of what tenants share.
    #[arg(long, value_name = "N", default_value_t = 1)]
    weight: u32,
    /// What the key is for.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "inference")]
    scopes: Vec<Scope>,
    /// How long it is good, as in 90m, 12h, 30d or 8w [default: until it is revoked].
    #[arg(long, value_name = "DURATION", value_parser = life, allow_hyphen_values = true)]
    expires: Option<SignedDuration>,
    /// The highest priority that its requests may have.
    #[arg(long, value_enum, default_value = "realtime")]
    max_priority: Priority,
    #[command(flatten)]
    limits: Limits,
}

impl Arguments {
    fn path(&self) -> Result<PathBuf> {
        let mut config = data_dir::config(self.config.as_deref())?;
        if let Some(dir) = &self.data_dir {
            config.coordinator.data_dir.clone_from(dir);
        }
        if let Some(file) = &self.api_keys {
            config.http.api_keys.clone_from(file);
        }
        data_dir::keys_path(&config)
    }

    /// Does what is asked for; what it says goes to `out`, and to standard error what isn't for
    /// scripts.
    ///
    /// # Errors
    /// When it can't.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let (path, now) = (self.path()?, Timestamp::now());
        match self.command {
            Command::Create(create) => {
                let name = create.name.clone();
                // A directory of one's own is there already.
                if let Some(parent) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
                    data_dir::create(parent)?;
                }
                let secret = new_secret().context("no random numbers")?;
                let key = create.key(&secret, now)?;
                file::edit(&path, |keys| add(keys, key, now))?;
                let path = path.display();
                eprintln!("key {name} is kept in {path} as a hash; this is the only time it shows");
                writeln!(out, "{secret}")?;
            }
            Command::List { json } => {
                let keys = match path.try_exists()? {
                    true => file::read(&path)?,
                    false => Vec::new(),
                };
                if json {
                    let keys: Vec<_> = keys.iter().map(|key| as_json(key, now)).collect();
                    writeln!(out, "{:#}", serde_json::Value::from(keys))?;
                } else {
                    list(&keys, now, out)?;
                }
            }
            Command::Revoke { name } => {
                ensure!(path.try_exists()?, "there are no keys: {} isn't there", path.display());
                file::edit(&path, |keys| {
                    let Some(key) = keys.iter_mut().find(|key| key.name == name) else {
                        bail!("there is no key {name}; autoglm key list tells their names");
                    };
                    key.revoked.get_or_insert(now);
                    Ok(())
                })?;
                eprintln!("key {name} is revoked; answers that have begun go on to their end");
            }
        }
        Ok(())
    }
}

impl Create {
    fn key(self, secret: &str, now: Timestamp) -> Result<Key> {
        let Self { name, tenant, weight, scopes, expires, max_priority, limits } = self;
        let expires = match expires {
            None => None,
            Some(life) => Some(now.checked_add(life).context("--expires is too far away")?),
        };
        let tenant = match tenant {
            None => name.clone(),
            Some(tenant) => tenant,
        };
        let hash = SecretHash::of(secret);
        let (created, revoked) = (now, None);
        let key = Key {
            name,
            hash,
            tenant,
            weight,
            scopes,
            max_priority,
            created,
            expires,
            revoked,
            limits,
        };
        key.check().map_err(anyhow::Error::msg)?;
        Ok(key)
    }
}

/// Adds a key, in the place of one of its name that is good no longer.
fn add(keys: &mut Vec<Key>, key: Key, now: Timestamp) -> Result<()> {
    let name = &key.name;
    match keys.iter().position(|known| known.name == *name) {
        Some(at) if keys[at].standing(now) == KeyStanding::Valid => {
            bail!("there is a key {name} already: choose another name, or revoke that one first")
        }
        Some(at) => keys[at] = key,
        None => keys.push(key),
    }
    Ok(())
}

fn as_json(key: &Key, now: Timestamp) -> serde_json::Value {
    json!({
        "name": key.name,
        "tenant": key.tenant,
        "weight": key.weight,
        "scopes": key.scopes,
        "standing": key.standing(now).name(),
        "max_priority": key.max_priority,
        "created": key.created.to_string(),
        "expires": key.expires.map(|time| time.to_string()),
        "revoked": key.revoked.map(|time| time.to_string()),
        "limits": key.limits,
    })
}

fn list(keys: &[Key], now: Timestamp, out: &mut impl Write) -> Result<()> {
    let row = |key: &Key| {
        let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.name()).collect();
        let limits: Vec<_> =
            key.limits.named().map(|(name, limit)| format!("{name}={limit}")).collect();
        let expires = key.expires.map_or_else(|| "never".to_owned(), |time| format!("{time:.0}"));
        [
            key.name.clone(),
            key.tenant.clone(),
            key.weight.to_string(),
            key.standing(now).name().to_owned(),
            expires,
            scopes.join(","),
            key.max_priority.name().to_owned(),
            limits.join(" "),
        ]
    };
    let head = ["NAME", "TENANT", "WEIGHT", "STANDING", "EXPIRES", "SCOPES", "UP TO", "LIMITS"];
    table(head, keys.iter().map(row), out)
}

/// Columns as wide as they must be.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    out: &mut impl Write,
) -> Result<()> {
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
            line += &format!("{cell:width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A number and its unit.
pub(crate) fn life(text: &str) -> Result<SignedDuration, String> {
    let wrong = || "must be a whole number with s, m, h, d or w, as in 30d".to_owned();
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    match i64::from(number) * unit {
        0 => Err("must be more than 0".into()),
        seconds if seconds > MAX_LIFE_S => Err("must be at most a hundred years".into()),
        seconds => Ok(SignedDuration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// What a command says, on keys in `dir`.
    fn run(dir: &std::path::Path, line: &str) -> Result<String, String> {
        let words = std::iter::once("key").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|cause| cause.to_string())?;
        let arguments = Arguments { data_dir: Some(dir.into()), ..line.arguments };
        let mut out = Vec::new();
        arguments.run(&mut out).map_err(|cause| format!("{cause:#}"))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_key_is_made_listed_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("new");
        assert_eq!(run(dir, "list").unwrap().lines().count(), 1);
        let create = "create --name anna --tenant lab --weight 3 --expires 2h \
            --scopes inference,metrics --max-priority standard --tokens-per-minute 5000";
        let secret = run(dir, create).unwrap();
        let other = run(dir, "create --name bert").unwrap();
        assert!(secret.starts_with("sk-") && secret.ends_with('\n') && secret != other);
        let kept = std::fs::read_to_string(dir.join("keys.toml")).unwrap();
        assert!(!kept.contains(secret.trim()) && !kept.contains(&secret[3..20]), "{kept}");

        let keys = run(dir, "list --json").unwrap();
        let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
        let anna = &keys[0];
        for (field, expected) in [
            ("name", json!("anna")),
            ("tenant", json!("lab")),
            ("weight", json!(3)),
            ("scopes", json!(["inference", "metrics"])),
            ("standing", json!("valid")),
            ("max_priority", json!("standard")),
            ("limits", json!({"tokens_per_minute": 5000})),
            ("revoked", json!(null)),
        ] {
            assert_eq!(anna[field], expected, "{field}");
        }
        let time = |field: &str| anna[field].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert_eq!(time("expires") - SignedDuration::from_hours(2), time("created"));
        assert_eq!((&keys[1]["tenant"], &keys[1]["expires"]), (&json!("bert"), &json!(null)));

        run(dir, "revoke anna").unwrap();
        let listed = run(dir, "list").unwrap();
        let line = listed.lines().find(|line| line.starts_with("anna")).unwrap();
        assert!(line.contains("revoked") && line.contains("tokens_per_minute=5000"), "{listed}");
        // Its name is free again.
        run(dir, "create --name anna").unwrap();
        assert_eq!(run(dir, "list").unwrap().lines().count(), 3);
    }

    #[test]
    fn what_cannot_be_made_or_revoked_is_refused_with_what_would_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let said = run(dir, "revoke anna").unwrap_err();
        assert!(said.contains("there are no keys"), "{said}");
        run(dir, "create --name anna").unwrap();
        for (line, expected) in [
            ("create --name anna", "there is a key anna already"),
            ("create", "--name"),
            ("create --name a/b", "letters, digits"),
            ("create --name b --weight 0", "from 1 to 1000"),
            ("create --name b --scopes everything", "inference, metrics, admin"),
            ("create --name b --expires 3", "as in 30d"),
            ("create --name b --expires 0d", "more than 0"),
            ("create --name b --expires -1d", "as in 30d"),
            ("create --name b --expires 9999w", "a hundred years"),
            ("create --name b --requests-per-minute 0", "0"),
            ("create --name b --max-priority high", "realtime"),
            ("revoke bert", "there is no key bert"),
        ] {
            let said = run(dir, line).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
        assert_eq!(run(dir, "list").unwrap().lines().count(), 2);
    }

    #[test]
    fn a_life_is_a_number_and_a_unit() {
        for (text, seconds) in [("90s", 90), ("90m", 5400), ("2h", 7200), ("30d", 2_592_000)] {
            assert_eq!(life(text).unwrap().as_secs(), seconds);
        }
        assert_eq!(life("1w").unwrap(), life("7d").unwrap());
        for wrong in ["", "d", "1.5h", "1é", "1 d", "1y"] {
            assert!(life(wrong).is_err(), "{wrong}");
        }
    }
}
