//! Whether the coordinator can be reached and would let a node in; if not, which of the many
//! reasons it is.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use protocol::config::Transport;
use protocol::{Address, Finding, NodeId};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::certs::SKEW;
use crate::error::{JoinError, TransportError};
use crate::resolve;
use crate::tls::OTHER_COORDINATOR;
use crate::token::Token;
use crate::trial::{self, Trial};

/// How long an answer to a single packet is waited for; it is sent again some times meanwhile.
const PACKET_TIMEOUT: Duration = Duration::from_millis(2000);
const PACKET_INTERVAL: Duration = Duration::from_millis(400);

/// How long a machine may take to answer by TCP.
const TCP_TIMEOUT: Duration = Duration::from_millis(1500);

/// A round trip that every token of every answer pays at each stage.
const FAR: Duration = Duration::from_millis(20);

/// Bytes a second, below which activations of a long prompt take longer than computing them:
/// 100 Mbit.
const NARROW: f64 = 12.5e6;

const SET_CLOCKS: &str = "set both clocks (timedatectl set-ntp true)";

/// What became of the way to the coordinator.
#[derive(Debug)]
pub enum Reach {
    /// Nobody knows its name.
    Unknown(String),
    /// The system has no way there.
    NoWay(SocketAddr, String),
    /// Its machine says that nothing listens.
    Refused(SocketAddr),
    /// UDP gets no answer; whether its machine answers by TCP.
    Silent(SocketAddr, bool),
    /// QUIC is spoken there, and this process has no token to go on with.
    NoToken(SocketAddr, String),
    /// It is there, and would not let this node in.
    Kept(SocketAddr, JoinError),
    /// It would.
    Passed(SocketAddr, Trial),
}

/// Goes there as a node would, up to the point where it would be let in. The token is proven, and
/// none of its uses is taken.
pub async fn look(
    coordinator: &Address,
    node: NodeId,
    token: impl Fn(SocketAddr) -> Result<Token, String>,
    config: &Transport,
) -> Reach {
    let found = match resolve(coordinator).await {
        Ok(found) => found,
        Err(cause) => return Reach::Unknown(cause.to_string()),
    };
    let mut first = None;
    for addr in found {
        let seen = look_at(addr, node, &token, config).await;
        match seen {
            // It may listen on another of the host's addresses.
            Reach::NoWay(..) | Reach::Refused(_) | Reach::Silent(..) => {
                first = first.or(Some(seen));
            }
            _ => return seen,
        }
    }
    first.unwrap_or_else(|| Reach::Unknown("it has no address".into()))
}

async fn look_at(
    addr: SocketAddr,
    node: NodeId,
    token: impl Fn(SocketAddr) -> Result<Token, String>,
    config: &Transport,
) -> Reach {
    match timeout(PACKET_TIMEOUT, knock(addr)).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) if cause.kind() == io::ErrorKind::ConnectionRefused => {
            return Reach::Refused(addr);
        }
        Ok(Err(cause)) => return Reach::NoWay(addr, cause.to_string()),
        Err(_) => {
            let by_tcp = timeout(TCP_TIMEOUT, TcpStream::connect(addr)).await;
            let answers = by_tcp.is_ok_and(|it| match it {
                Ok(_) => true,
                Err(cause) => cause.kind() == io::ErrorKind::ConnectionRefused,
            });
            return Reach::Silent(addr, answers);
        }
    }
    match token(addr) {
        Err(cause) => Reach::NoToken(addr, cause),
        Ok(token) => match trial::undergo(addr, node, &token, config).await {
            Ok(passed) => Reach::Passed(addr, passed),
            Err(cause) => Reach::Kept(addr, cause),
        },
    }
}

/// Sends a packet of a version of QUIC that nobody speaks: whoever speaks another says which, and
/// remembers nothing of it. Resolves when it does; whoever calls has a limit.
async fn knock(addr: SocketAddr) -> io::Result<()> {
    let any = match addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    // Only a socket that is connected hears that nobody listens.
    socket.connect(addr).await?;
    let mut answer = [0; 64];
    loop {
        socket.send(&STRANGE).await?;
        if let Ok(heard) = timeout(PACKET_INTERVAL, socket.recv(&mut answer)).await {
            let num_bytes = heard?;
            // A long header with version 0 names the versions that are spoken.
            if num_bytes > 5 && answer[0] & 0x80 != 0 && answer[1..5] == [0; 4] {
                return Ok(());
            }
        }
    }
}

/// A long header with a version of those that are kept for this, the names of two connections of
/// eight bytes each, and as many bytes as a first packet must have.
const STRANGE: [u8; 1200] = {
    let mut packet = [0; 1200];
    packet[0] = 0xc0;
    let mut at = 1;
    while at <= 4 {
        packet[at] = 0x1a;
        at += 1;
    }
    packet[5] = 8;
    packet[14] = 8;
    packet
};

/// What follows of all that.
pub fn judge(coordinator: &Address, seen: &Reach) -> Vec<Finding> {
    let port = coordinator.port();
    let fail = |found: String, remedy: &str| vec![Finding::fail("reach", found, remedy)];
    let there = |addr: &SocketAddr| Finding::ok("reach", format!("QUIC is spoken at {addr}"));
    match seen {
        Reach::Unknown(cause) => fail(
            format!("{coordinator}: {cause}"),
            "write its address, or mend the name (DNS, /etc/hosts)",
        ),
        Reach::NoWay(addr, cause) => fail(
            format!("there is no way to {addr}: {cause}"),
            "check the address and this machine's routes",
        ),
        Reach::Refused(addr) => fail(
            format!("the machine of {addr} answers, and nothing listens on its UDP port {port}"),
            "start the coordinator there (autoglm serve --cluster ADDR:PORT, not loopback for \
             other machines), or give its port",
        ),
        Reach::Silent(addr, true) => fail(
            format!("the machine of {addr} answers by TCP, and UDP gets no answer"),
            &format!("let UDP port {port} through every firewall between, in both directions"),
        ),
        Reach::Silent(addr, false) => fail(
            format!("{addr} answers neither by UDP nor by TCP"),
            &format!(
                "check the address and that the machine is on; then let UDP port {port} through \
                 every firewall between"
            ),
        ),
        Reach::NoToken(addr, cause) => vec![
            there(addr),
            Finding::fail(
                "token",
                format!("no join token: {cause}"),
                "make one on the coordinator's machine (autoglm token create) and give --token",
            ),
        ],
        Reach::Kept(addr, cause) => vec![there(addr), judge_refusal(cause)],
        Reach::Passed(addr, trial) => {
            let Trial { clock_ahead_ms, rtt, upload, download } = trial;
            vec![
                there(addr),
                Finding::ok("token", "the coordinator would let this node in"),
                judge_clock(*clock_ahead_ms),
                judge_link("the coordinator", Link { rtt: *rtt, rates: [*upload, *download] }),
            ]
        }
    }
}

/// A coordinator that is there says no, or isn't the one.
fn judge_refusal(cause: &JoinError) -> Finding {
    let found = cause.to_string();
    if found.contains(OTHER_COORDINATOR) {
        return Finding::fail(
            "token",
            "the token is of another coordinator than the one that listens there",
            "take a token from this coordinator (autoglm token create), or give the other's \
             address",
        );
    }
    if found.contains("wire version") {
        return Finding::fail("version", found, "install the same release on both machines");
    }
    match cause {
        JoinError::Transport(TransportError::OtherTime { .. }) => {
            Finding::fail("clock", found, SET_CLOCKS)
        }
        JoinError::NotNow(_) => Finding::warn("token", found, "wait, or end the other process"),
        JoinError::Refused(_) => {
            Finding::fail("token", found, "make another token (autoglm token create)")
        }
        _ => Finding::fail("reach", found, "look into the coordinator's log"),
    }
}

/// Certificates are valid from a little before they are made: so much may clocks differ.
fn judge_clock(ahead_ms: i64) -> Finding {
    let (check, skew_ms) = ("clock", SKEW.whole_milliseconds() as u64);
    let seconds = ahead_ms.unsigned_abs() as f64 / 1e3;
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let found = format!("{seconds:.1} s {side} the coordinator's");
    let remedy = SET_CLOCKS;
    match ahead_ms.unsigned_abs() {
        off if off > skew_ms => Finding::fail(check, found + ": certificates won't hold", remedy),
        off if off > skew_ms / 5 => Finding::warn(check, found, remedy),
        _ => Finding::ok(check, found),
    }
}

/// What was measured of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// The round trip.
    pub rtt: Duration,
    /// Bytes a second, there and back.
    pub rates: [f64; 2],
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [there, back] = self.rates.map(|rate| rate / 1e6);
        let rtt = self.rtt.as_secs_f64() * 1e3;
        write!(f, "{rtt:.1} ms round trip, {there:.0} MB/s there, {back:.0} MB/s back")
    }
}

/// Whether a link to `whom` is good enough for activations.
pub fn judge_link(whom: &str, link: Link) -> Finding {
    let found = format!("to {whom}: {link}");
    let narrow = link.rates.iter().any(|rate| *rate < NARROW);
    match (link.rtt > FAR, narrow) {
        (false, false) => Finding::ok("link", found),
        (true, _) => Finding::warn(
            "link",
            found,
            "put machines of one pipeline near each other: each token waits for each link",
        ),
        (false, true) => Finding::warn(
            "link",
            found,
            "use a faster network: long prompts wait for their activations",
        ),
    }
}

#[cfg(test)]
mod tests {
    use protocol::Severity;

    use super::*;
    use crate::tests::{NODE, coordinator, let_in, loopback, token};
    use crate::{Applicant, Authority, Endpoint, Verdict};

    fn quick() -> Transport {
        Transport { connect_timeout_ms: 2000, ..Transport::default() }
    }

    async fn seen(addr: SocketAddr, token: &Token) -> Reach {
        let token = |_| Ok(token.clone());
        look(&addr.into(), NODE, token, &quick()).await
    }

    /// The worst that is said of it.
    fn worst(seen: &Reach) -> Finding {
        let addr = Address::from(SocketAddr::from(([127, 0, 0, 1], 7000)));
        let findings = judge(&addr, seen);
        let worst = findings.into_iter().max_by_key(|it| it.severity).unwrap();
        let is_mended = worst.severity == Severity::Ok || !worst.remedy.is_empty();
        assert!(is_mended, "nothing to do: {worst}");
        worst
    }

    fn fails(seen: &Reach, check: &str, words: &str) {
        let worst = worst(seen);
        let said = worst.to_string();
        assert_eq!((worst.severity, worst.check.as_str()), (Severity::Fail, check), "{said}");
        assert!(said.contains(words), "{said} without {words}");
    }

    /// Each way in which a coordinator isn't reached looks different, and is named.
    #[tokio::test]
    async fn a_way_that_ends_early_is_told_from_the_others() {
        let (endpoint, authority, dir) = coordinator(&quick());
        let token = token(&authority, &dir);
        let closed = std::net::UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
        let refused = seen(closed, &token).await;
        assert!(matches!(refused, Reach::Refused(_)), "{refused:?}");
        fails(&refused, "reach", "nothing listens on its UDP port");

        // Its machine answers by TCP that nobody is there.
        let silent = std::net::UdpSocket::bind(loopback()).unwrap();
        let silent = seen(silent.local_addr().unwrap(), &token).await;
        assert!(matches!(silent, Reach::Silent(_, true)), "{silent:?}");
        fails(&silent, "reach", "answers by TCP, and UDP gets no answer");
        fails(&Reach::Silent(closed, false), "reach", "neither by UDP nor by TCP");
        fails(&Reach::NoWay(closed, "network is down".into()), "reach", "network is down");

        let nobody = "nobody.invalid:7000".parse().unwrap();
        let unknown = look(&nobody, NODE, |_| Ok(token.clone()), &quick()).await;
        fails(&unknown, "reach", "nobody.invalid");

        let addr = endpoint.local_addr().into();
        let none = look(&addr, NODE, |_| Err("no such file".into()), &quick()).await;
        fails(&none, "token", "no such file");
    }

    /// A coordinator that is there and keeps a node out says why, or TLS does.
    #[tokio::test]
    async fn a_coordinator_that_says_no_is_told_from_one_that_is_not_there() {
        let (endpoint, authority, dir) = coordinator(&quick());
        let good = token(&authority, &dir);
        let addr = endpoint.local_addr();

        let elsewhere = tempfile::tempdir().unwrap();
        let other = Authority::load_or_create(elsewhere.path()).unwrap();
        let other = seen(addr, &token(&other, &elsewhere)).await;
        fails(&other, "token", "of another coordinator");

        let refuse = |_: &Applicant| Verdict::Refused("join token x is expired".into());
        let config = quick();
        let refusing = let_in(&endpoint, &authority, &config, refuse);
        let (refused, _) = tokio::join!(seen(addr, &good), refusing);
        fails(&refused, "token", "join token x is expired");

        let theirs = JoinError::OtherVersion { theirs: 9, newest: 5 }.to_string();
        fails(&Reach::Kept(addr, JoinError::Refused(theirs)), "version", "wire version 9");

        let mut old = authority.old_coordinator_identity();
        old.chain.push(authority.certificate().into());
        let old = Endpoint::bind(loopback(), Some(old), &quick()).unwrap();
        fails(&seen(old.local_addr(), &good).await, "clock", "certificate expired");
    }

    /// Goal: who is told that it would be let in has measured the link, and has got nothing.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_passes_knows_the_link_and_is_no_member() {
        let (endpoint, authority, dir) = coordinator(&quick());
        let good = token(&authority, &dir);
        let admit = |applicant: &Applicant| {
            assert!(applicant.is_trial && applicant.knows(&good.key()));
            Verdict::Admitted { pool: "a".into() }
        };
        let config = Transport::default();
        let admitting = let_in(&endpoint, &authority, &config, admit);
        let (passed, served) = tokio::join!(seen(endpoint.local_addr(), &good), admitting);
        served.unwrap();
        let Reach::Passed(_, trial) = &passed else { panic!("{passed:?}") };
        assert!(trial.clock_ahead_ms.abs() < 60_000, "{trial:?}");
        assert!(trial.upload > 1e5 && trial.download > 1e5, "{trial:?}");
        assert!(trial.rtt < Duration::from_secs(1), "{trial:?}");
        let said: Vec<_> = judge(&endpoint.local_addr().into(), &passed);
        let checks: Vec<_> = said.iter().map(|it| it.check.as_str()).collect();
        assert_eq!(checks, ["reach", "token", "clock", "link"]);
    }

    #[test]
    fn clocks_and_links_are_judged_by_what_they_cost() {
        let clock = |ms| (judge_clock(ms).severity, judge_clock(ms).found);
        assert_eq!(clock(-900), (Severity::Ok, "0.9 s behind the coordinator's".into()));
        assert_eq!(clock(90_000).0, Severity::Warn);
        assert_eq!(clock(-301_000).0, Severity::Fail);
        let link = |ms, rates| judge_link("b", Link { rtt: Duration::from_millis(ms), rates });
        assert_eq!(link(1, [1e9; 2]).severity, Severity::Ok);
        assert!(link(1, [1e9; 2]).found.contains("1.0 ms round trip, 1000 MB/s there"));
        let far = link(80, [1e9; 2]);
        assert!(far.severity == Severity::Warn && far.remedy.contains("near"), "{far}");
        let narrow = link(1, [1e9, 1e6]);
        assert!(narrow.severity == Severity::Warn && narrow.remedy.contains("faster"), "{narrow}");
    }
}
