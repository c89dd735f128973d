//! `autoglm token`: makes, lists and revokes join tokens, whether the coordinator runs or not.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use protocol::Address;
use serde_json::json;
use transport::Authority;

use super::{TokenRecord, TokenStanding};
use crate::admission::DEFAULT_POOL;
use crate::data_dir::{self, DataDir};
use crate::keys::command::{life, table};
use crate::store::Store;
use crate::whereabouts::Whereabouts;

/// By this name the store knows where nodes join.
pub(crate) const CLUSTER_ADDR: &str = "cluster_addr";

/// Makes, lists and revokes join tokens.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    coordinator: Whereabouts,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a token and prints the command that joins a node by it.
    Create(Create),
    /// Lists the tokens, without their secrets.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Takes a token back. Nodes that have joined by it stay.
    Revoke {
        /// The token's name or id.
        token: String,
    },
}

#[derive(Args)]
struct Create {
    /// Where its nodes belong.
    #[arg(long, default_value = DEFAULT_POOL, value_parser = pool)]
    pool: String,
    /// How long it is good, as in 90s, 15m, 12h or 7d.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = life)]
    ttl: SignedDuration,
    /// So many nodes may join by it.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    uses: u32,
    /// What people call it [default: its id].
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Does what is asked for; what it says goes to `out`, and to standard error what isn't for
    /// scripts.
    ///
    /// # Errors
    /// When it can't.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.act(out))
    }

    async fn act(self, out: &mut impl Write) -> Result<()> {
        let (config, dir) = self.coordinator.find()?;
        let now = Timestamp::now();
        match self.command {
            Command::Create(create) => {
                data_dir::create(&dir)?;
                let authority = authority(&config, &dir)?;
                let store = Store::open(&dir).await?;
                let listens = match store.fact(CLUSTER_ADDR).await? {
                    Some(addr) => addr.parse().context("what the coordinator wrote")?,
                    None => configured(&config.coordinator.cluster_addr).await?,
                };
                create.make(&store, &authority, listens, now, out).await?;
            }
            Command::List { json } => {
                let tokens = kept(&dir).await?.tokens().await?;
                if json {
                    let tokens: Vec<_> = tokens.iter().map(|it| as_json(it, now)).collect();
                    writeln!(out, "{:#}", serde_json::Value::from(tokens))?;
                } else {
                    list(&tokens, now, out)?;
                }
            }
            Command::Revoke { token } => {
                let num = kept(&dir).await?.revoke_token(token.clone(), now).await?;
                ensure!(num > 0, "there is no token {token}; autoglm token list tells their names");
                eprintln!("token {token} is revoked; nodes that have joined by it stay");
            }
        }
        Ok(())
    }
}

/// The coordinator's state, which has to be there.
async fn kept(dir: &Path) -> Result<Store> {
    ensure!(
        dir.join("ca.pem").exists(),
        "there is no coordinator's data in {}: name its --data-dir, or its --cluster HOST:PORT",
        dir.display()
    );
    Ok(Store::open(dir).await?)
}

/// The cluster's authority; made here where no coordinator has been started yet, while none starts.
fn authority(config: &protocol::Config, dir: &Path) -> Result<Authority> {
    let _held = match dir.join("ca.pem").exists() {
        true => None,
        false => Some(DataDir::open(config).context("a coordinator is just starting here")?),
    };
    Ok(Authority::load_or_create(dir)?)
}

async fn configured(addr: &Address) -> Result<SocketAddr> {
    let found = transport::resolve(addr).await.context("--cluster")?;
    eprintln!("no coordinator has been started here yet; it is taken to listen on {addr}");
    Ok(found[0])
}

impl Create {
    async fn make(
        self,
        store: &Store,
        authority: &Authority,
        listens: SocketAddr,
        now: Timestamp,
        out: &mut impl Write,
    ) -> Result<()> {
        let secret = transport::Token::new(authority)?;
        let token = TokenRecord {
            id: secret.id().to_owned(),
            name: self.name.unwrap_or_else(|| secret.id().to_owned()),
            pool: self.pool,
            key: secret.key(),
            max_uses: self.uses,
            num_uses: 0,
            created: now,
            expires: now.checked_add(self.ttl).context("--ttl is too far away")?,
            revoked: None,
        };
        let is_taken =
            |it: &TokenRecord| it.name == token.name && it.standing(now) == TokenStanding::Valid;
        if store.tokens().await?.iter().any(is_taken) {
            bail!("there is a token {} already: choose another --name, or revoke it", token.name);
        }
        store.add_token(token.clone()).await?;
        let addrs = reached_at(listens, &own_addresses()?);
        let join = addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let text = secret.text();
        let command = format!("autoglm-node --join {join} --token {text}");
        if self.json {
            let mut shown = as_json(&token, now);
            shown["token"] = text.into();
            shown["join"] = addrs.iter().map(ToString::to_string).collect();
            shown["command"] = command.into();
            writeln!(out, "{shown:#}")?;
        } else {
            let TokenRecord { name, pool, max_uses, expires, .. } = &token;
            eprintln!(
                "token {name}: for {max_uses} node(s) of pool {pool}, until {expires:.0}; on the \
                 other machine run:"
            );
            writeln!(out, "{command}")?;
        }
        if listens.ip().is_loopback() {
            let port = listens.port();
            eprintln!(
                "the coordinator listens on {listens}, which no other machine reaches: start it \
                 with --cluster 0.0.0.0:{port}"
            );
        }
        Ok(())
    }
}

/// Where nodes of other machines reach who listens there, on a machine with these addresses.
fn reached_at(listens: SocketAddr, own: &[IpAddr]) -> Vec<SocketAddr> {
    if !listens.ip().is_unspecified() {
        return vec![listens];
    }
    let is_for_all = listens.is_ipv6();
    let mut found: Vec<_> = own.iter().copied().filter(|ip| ip.is_ipv4() || is_for_all).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    if found.is_empty() {
        found.push(if is_for_all {
            [0, 0, 0, 0, 0, 0, 0, 1].into()
        } else {
            [127, 0, 0, 1].into()
        });
    }
    found.into_iter().map(|ip| SocketAddr::new(ip, listens.port())).collect()
}

/// This machine's addresses by which others may know it.
fn own_addresses() -> Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("can't list this machine's addresses")?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| it.ip().into()))
    });
    let is_of_use = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let mut found: Vec<_> = addresses.filter(is_of_use).collect();
    found.dedup();
    Ok(found)
}

fn as_json(token: &TokenRecord, now: Timestamp) -> serde_json::Value {
    json!({
        "id": token.id,
        "name": token.name,
        "pool": token.pool,
        "standing": token.standing(now).name(),
        "uses": token.num_uses,
        "max_uses": token.max_uses,
        "created": token.created.to_string(),
        "expires": token.expires.to_string(),
        "revoked": token.revoked.map(|time| time.to_string()),
    })
}

fn list(tokens: &[TokenRecord], now: Timestamp, out: &mut impl Write) -> Result<()> {
    let rows = tokens.iter().map(|token| {
        [
            token.name.clone(),
            token.id.clone(),
            token.pool.clone(),
            token.standing(now).name().to_owned(),
            format!("{}/{}", token.num_uses, token.max_uses),
            format!("{:.0}", token.expires),
        ]
    });
    table(["NAME", "ID", "POOL", "STANDING", "USES", "EXPIRES"], rows, out)
}

/// What certificates and tables can hold.
fn pool(text: &str) -> Result<String, String> {
    let is_legal = (1..=32).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    match is_legal {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 32 lower-case letters, digits and -, as in gpu-a".into()),
    }
}

fn name(text: &str) -> Result<String, String> {
    let is_legal = (1..=64).contains(&text.len())
        && text.chars().all(|c| c.is_alphanumeric() || "-_. ".contains(c));
    match is_legal {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 64 letters, digits, spaces, -, _ and .".into()),
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

    /// What a command says, on a coordinator's data in `dir`.
    fn run(dir: &Path, line: &str) -> Result<String, String> {
        let words = std::iter::once("token").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|cause| cause.to_string())?;
        let mut arguments = line.arguments;
        arguments.coordinator.data_dir = Some(dir.into());
        let mut out = Vec::new();
        arguments.run(&mut out).map_err(|cause| format!("{cause:#}"))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_token_is_made_listed_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("new");
        let said = run(dir, "list").unwrap_err();
        assert!(said.contains("name its --data-dir") && !dir.exists(), "{said}");
        let command = run(dir, "create --pool gpu-a --ttl 15m --uses 2 --name rack-1").unwrap();
        let secret = command.split_whitespace().last().unwrap();
        secret.parse::<transport::Token>().unwrap();
        let expected = format!("autoglm-node --join 127.0.0.1:7000 --token {secret}\n");
        assert_eq!(command, expected);
        // The secret is nowhere.
        let letters = secret.rsplit('.').next().unwrap();
        for file in std::fs::read_dir(dir).unwrap() {
            // The database's own files go when it is closed, which may be now.
            let Ok(bytes) = std::fs::read(file.unwrap().path()) else { continue };
            assert!(!bytes.windows(8).any(|it| letters.as_bytes().windows(8).any(|of| of == it)));
        }
        let made = run(dir, "create --json --cluster 10.1.2.3:7001").unwrap();
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert_eq!(made["join"], json!(["10.1.2.3:7001"]));
        assert!(made["command"].as_str().unwrap().contains("--join 10.1.2.3:7001 --token AGJ1."));
        assert_eq!((&made["pool"], &made["max_uses"]), (&json!("default"), &json!(1)));

        let tokens = run(dir, "list --json").unwrap();
        let tokens: serde_json::Value = serde_json::from_str(&tokens).unwrap();
        let token = &tokens[0];
        for (field, expected) in [
            ("name", json!("rack-1")),
            ("pool", json!("gpu-a")),
            ("standing", json!("valid")),
            ("uses", json!(0)),
            ("max_uses", json!(2)),
        ] {
            assert_eq!(token[field], expected, "{field}");
        }
        let time = |field: &str| token[field].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert_eq!(time("created") + SignedDuration::from_mins(15), time("expires"));
        run(dir, "revoke rack-1").unwrap();
        let listed = run(dir, "list").unwrap();
        let line = listed.lines().find(|line| line.starts_with("rack-1")).unwrap();
        assert!(line.contains("revoked") && line.contains("0/2"), "{listed}");
        run(dir, "create --name rack-1").unwrap();
    }

    #[test]
    fn what_cannot_be_made_or_revoked_is_refused_with_what_would_be_right() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), "create --name rack-1").unwrap();
        for (line, expected) in [
            ("create --name rack-1", "choose another --name"),
            ("create --pool GPU", "as in gpu-a"),
            ("create --pool a/b", "as in gpu-a"),
            ("create --ttl 15", "as in 30d"),
            ("create --uses 0", "1..="),
            ("revoke nobody", "there is no token nobody"),
        ] {
            let said = run(dir.path(), line).unwrap_err();
            assert!(said.contains(expected), "{line}: {said}");
        }
    }

    #[test]
    fn who_listens_everywhere_is_reached_at_each_address_of_the_family() {
        let own: [IpAddr; 3] = ["fd00::1", "10.0.0.1", "192.168.1.1"].map(|ip| ip.parse().unwrap());
        let reached = |listens: &str| {
            let found = reached_at(listens.parse().unwrap(), &own);
            found.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        assert_eq!(reached("10.9.9.9:7"), "10.9.9.9:7");
        assert_eq!(reached("0.0.0.0:7"), "10.0.0.1:7,192.168.1.1:7");
        assert_eq!(reached("[::]:7"), "10.0.0.1:7,192.168.1.1:7,[fd00::1]:7");
    }
}
