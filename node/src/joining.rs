//! Getting in: which coordinator answers, what is shown to it, and what is kept for the next time.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use protocol::config::Transport;
use protocol::{Address, NodeId};
use tracing::warn;
use transport::{Identity, JoinError, Joined, Joining, NodeKey, Token, TransportError};

use crate::run::{Options, default_data_dir};

/// Where a token is looked for that nothing names.
const SYSTEM_TOKEN: &str = "/etc/autoglm/join.token";

/// Between the first two tries to reach the coordinator; then twice as long, up to the longest,
/// which is short: one that has started again waits for its nodes, and clients with it.
const RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Rounds between two words about the same trouble.
const ROUNDS_PER_WARNING: usize = 60;

/// The node's key and certificate: with them it comes back without a token.
#[derive(Clone, Debug)]
pub(crate) struct Papers {
    key: NodeKey,
    certificate: PathBuf,
}

impl Papers {
    /// Those kept in a node's data directory; a new key where there is none.
    ///
    /// # Errors
    /// When the key can't be read or written.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        let key = NodeKey::load_or_create(&data_dir.join("node.key"))?;
        Ok(Self { key, certificate: data_dir.join("node.pem") })
    }

    /// Keeps a certificate for the next start. Without it a token is needed then, no more.
    pub(crate) fn keep(&self, identity: &Identity) {
        if let Err(cause) = identity.keep(&self.certificate) {
            warn!(%cause, "the certificate can't be kept: the next start needs a token");
        }
    }
}

impl Options {
    fn token(&self, port: u16) -> Result<Token> {
        find_token(self.token.as_ref(), self.token_file.as_deref(), port)
    }
}

/// What to prove to the coordinator that listens on this port: this token, or what stands in this
/// file, or where a coordinator of this machine puts it.
///
/// # Errors
/// When there is none.
pub(crate) fn find_token(token: Option<&Token>, file: Option<&Path>, port: u16) -> Result<Token> {
    if let Some(token) = token {
        return Ok(token.clone());
    }
    let path = match file {
        Some(path) => path.to_owned(),
        None => token_file(default_data_dir(), port, Path::new(SYSTEM_TOKEN))?,
    };
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "no join token in {}: on the coordinator's machine run autoglm token create, and \
             here what it prints; for a coordinator on this machine with another --data-dir \
             name its join.token with --token-file",
            path.display()
        )
    })?;
    text.parse().map_err(|cause| anyhow::anyhow!("{}: {cause}", path.display()))
}

/// Where a token is that nothing names: in the user's own place, or else in the system's.
fn token_file(own: Result<PathBuf>, port: u16, system: &Path) -> Result<PathBuf> {
    let own = own.map(|dir| dir.join(format!("coordinator-{port}/join.token")));
    match own {
        Ok(own) if own.exists() || !system.exists() => Ok(own),
        // A service may have no home.
        _ if system.exists() => Ok(system.to_owned()),
        _ => own.context("no join token is given: name its file with --token-file"),
    }
}

/// Asks the coordinator in until it answers, at each of its addresses in turn.
///
/// # Errors
/// When it refuses this node for good.
pub(crate) async fn join(
    options: &Options,
    node: NodeId,
    papers: &Papers,
) -> Result<(SocketAddr, Joined)> {
    let mut pause = RETRY;
    let mut said = (String::new(), 0_usize);
    loop {
        // Each cause once, with all whom it is of.
        let mut causes: Vec<(String, String)> = Vec::new();
        for coordinator in &options.coordinators {
            match ask_host(options, node, papers, coordinator).await {
                Ok(joined) => return Ok(joined),
                Err(Failed::Final(cause)) => return Err(cause),
                Err(Failed::Now(cause)) => match causes.iter_mut().find(|it| it.1 == cause) {
                    Some((whose, _)) => *whose += &format!(", {coordinator}"),
                    None => causes.push((coordinator.to_string(), cause)),
                },
            }
        }
        let causes: Vec<_> = causes.iter().map(|(of, cause)| format!("{of}: {cause}")).collect();
        let causes = causes.join("; ");
        let (last, num_rounds) = &mut said;
        if *last != causes || num_rounds.is_multiple_of(ROUNDS_PER_WARNING) {
            warn!("waiting for {causes}");
            (*last, *num_rounds) = (causes, 0);
        }
        *num_rounds += 1;
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_RETRY);
    }
}

/// Why the node isn't in.
enum Failed {
    /// It may be tried again.
    Now(String),
    /// It may not.
    Final(anyhow::Error),
}

impl From<JoinError> for Failed {
    fn from(cause: JoinError) -> Self {
        if cause.is_final() { Self::Final(cause.into()) } else { Self::Now(cause.to_string()) }
    }
}

async fn ask_host(
    options: &Options,
    node: NodeId,
    papers: &Papers,
    coordinator: &Address,
) -> Result<(SocketAddr, Joined), Failed> {
    let found = transport::resolve(coordinator).await;
    let found = found.map_err(|cause| Failed::Now(cause.to_string()))?;
    let mut causes = Vec::new();
    for addr in found {
        match ask(options, node, papers, addr).await {
            Ok(joined) => {
                papers.keep(&joined.identity);
                return Ok((addr, joined));
            }
            Err(Failed::Now(cause)) if causes.contains(&cause) => {}
            Err(Failed::Now(cause)) => causes.push(cause),
            Err(cause @ Failed::Final(_)) => return Err(cause),
        }
    }
    Err(Failed::Now(causes.join("; ")))
}

async fn ask(
    options: &Options,
    node: NodeId,
    papers: &Papers,
    coordinator: SocketAddr,
) -> Result<Joined, Failed> {
    check_reachable(coordinator.ip(), options.advertise)
        .map_err(|cause| Failed::Now(format!("{cause:#}")))?;
    // The coordinator's own settings come with its welcome.
    let config = &Transport::default();
    let (key, pool, newest) = (&papers.key, &options.pool, options.wire_version);
    let joining = Joining { coordinator, node, key, pool, config, newest };
    let kept = Identity::load(&papers.certificate, &papers.key);
    let as_member = match &kept {
        None => None,
        Some(identity) => match joining.as_member(identity).await {
            Ok(joined) => return Ok(joined),
            Err(cause) if may_token_help(&cause) => Some(cause),
            Err(cause) => return Err(cause.into()),
        },
    };
    let token = match options.token(coordinator.port()) {
        Ok(token) => token,
        Err(cause) => {
            let no_token = || Failed::Now(format!("{cause:#}"));
            return Err(as_member.map_or_else(no_token, Failed::from));
        }
    };
    joining.by_token(&token).await.map_err(|cause| match as_member {
        // What it has may still be good, where the right one listens again.
        Some(JoinError::Transport(other)) => {
            Failed::Now(format!("{other}; and by the token: {cause}"))
        }
        _ => cause.into(),
    })
}

/// Whether a token may get a node in whose certificate doesn't: the coordinator may have been made
/// anew, or the node, which has another id then, or it may be meant for another pool by now.
fn may_token_help(cause: &JoinError) -> bool {
    use TransportError::{OtherTime, Stranger};
    matches!(
        cause,
        JoinError::Refused(_) | JoinError::Transport(Stranger { .. } | OtherTime { .. })
    )
}

/// Neighbours reach a node where its coordinator sees it.
pub(crate) fn check_reachable(coordinator: IpAddr, advertise: Option<IpAddr>) -> Result<()> {
    match coordinator {
        IpAddr::V6(ip) if ip.is_unicast_link_local() && advertise.is_none() => bail!(
            "{ip} is good on one link only, and so is the address at which the coordinator would \
             see this node: give --join another address of it, or --advertise one at which other \
             nodes reach this one"
        ),
        _ => Ok(()),
    }
}

/// An address at which other nodes are to reach this one.
///
/// # Errors
/// When none could.
pub fn advertised(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| "must be an IP address, as in 10.0.0.2")?;
    let ip = ip.to_canonical();
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if ip.is_unspecified() || ip.is_multicast() || is_link_local {
        return Err("must be an address at which every other node reaches this machine: not a \
                    link-local or multicast one, and not 0.0.0.0 or ::"
            .into());
    }
    Ok(ip)
}

/// A label: `key=value`.
///
/// # Errors
/// When it is none.
pub fn label(text: &str) -> Result<(String, String), String> {
    let is_word = |word: &str| {
        (1..=63).contains(&word.len())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
    };
    match text.split_once('=') {
        Some((key, value)) if is_word(key) && is_word(value) => Ok((key.into(), value.into())),
        _ => Err("must be KEY=VALUE of letters, digits, -, _, . and /, as in rack=7".into()),
    }
}

#[cfg(test)]
mod tests {
    use transport::{Authority, Endpoint, Incoming, Verdict};

    use super::*;

    /// Goal: a certificate that the coordinator doesn't take is in no token's way. Method: a node
    /// that has one of pool a, is to be in pool b, and then has another id; and no token at all.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_that_is_refused_is_let_in_by_its_token() {
        let (dir, node) = (tempfile::tempdir().unwrap(), NodeId(1));
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let token = Token::load_or_create(&dir.path().join("join.token"), &authority).unwrap();
        let papers = Papers::open(dir.path()).unwrap();
        let (config, local) = (Transport::default(), ([127, 0, 0, 1], 0).into());
        let identity = authority.coordinator_identity(1).unwrap();
        let endpoint = Endpoint::bind(local, Some(identity), &config).unwrap();
        let options = crate::session_tests::options(endpoint.local_addr(), token);
        let serving = tokio::spawn(async move {
            let (mut pools, mut joined) = (["a", "b", "b"].into_iter(), Vec::new());
            while let Some(Incoming::Join(request)) = endpoint.accept().await {
                // It has heard why, whose certificate is another's.
                let Ok(asking) = request.hear(&config).await else { continue };
                let verdict = match &asking.applicant.member {
                    Some(pool) => Verdict::Refused(format!("it is of pool {pool}")),
                    None => Verdict::Admitted { pool: pools.next().unwrap().into() },
                };
                joined.push(verdict.clone());
                asking.answer(&authority, &config, false, &verdict).await.unwrap();
                if joined.len() == 5 {
                    break;
                }
            }
            joined
        });
        for node in [node, node, NodeId(2)] {
            join(&options, node, &papers).await.unwrap();
        }
        let none = Options { token: None, token_file: Some(dir.path().join("none")), ..options };
        let said = join(&none, NodeId(2), &papers).await.unwrap_err().to_string();
        assert!(said.contains("it is of pool b"), "{said}");
        let pool = |pool: &str| Verdict::Admitted { pool: pool.into() };
        let refused = |pool: &str| Verdict::Refused(format!("it is of pool {pool}"));
        let expected = [pool("a"), refused("a"), pool("b"), pool("b"), refused("b")];
        assert_eq!(serving.await.unwrap(), expected);
    }

    #[test]
    fn who_has_no_home_has_the_systems_token() {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("join.token");
        let homeless = || Err(anyhow::anyhow!("HOME isn't set"));
        let at_home = || Ok(dir.path().to_owned());
        let own = dir.path().join("coordinator-7/join.token");
        let said = format!("{:#}", token_file(homeless(), 7, &system).unwrap_err());
        assert!(said.contains("--token-file") && said.contains("HOME"), "{said}");
        assert_eq!(token_file(at_home(), 7, &system).unwrap(), own);
        std::fs::write(&system, "").unwrap();
        assert_eq!(token_file(homeless(), 7, &system).unwrap(), system);
        assert_eq!(token_file(at_home(), 7, &system).unwrap(), system);
        std::fs::create_dir(own.parent().unwrap()).unwrap();
        std::fs::write(&own, "").unwrap();
        assert_eq!(token_file(at_home(), 7, &system).unwrap(), own);
    }

    #[test]
    fn what_no_neighbour_could_reach_is_refused_with_what_would_be_right() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let said = check_reachable(ip("fe80::1"), None).unwrap_err().to_string();
        assert!(said.contains("one link only") && said.contains("--advertise"), "{said}");
        check_reachable(ip("fe80::1"), Some(ip("10.0.0.2"))).unwrap();
        check_reachable(ip("fd00::1"), None).unwrap();
        assert_eq!(advertised("::ffff:10.0.0.2").unwrap(), ip("10.0.0.2"));
        for wrong in ["0.0.0.0", "::", "fe80::1", "224.0.0.1", "host", "10.0.0.2:7"] {
            let said = advertised(wrong).unwrap_err();
            assert!(said.contains("address"), "{wrong}: {said}");
        }
        assert_eq!(label("rack=7").unwrap(), ("rack".into(), "7".into()));
        for wrong in ["rack", "rack=", "=7", "ra ck=7", "a=b=c"] {
            assert!(label(wrong).unwrap_err().contains("rack=7"), "{wrong}");
        }
    }
}
