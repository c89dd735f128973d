//! Strangers and members at the door of a coordinator: who gets in, who is turned away for what,
//! and that a good token is good in between.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use protocol::config::Transport;
use protocol::{NodeId, WIRE_VERSION};
use transport::doctor::reach::{self, Reach};
use transport::{
    Authority, Endpoint, JoinError, Joined, Joining, NodeKey, PeerName, Purpose, Token, renew,
};

use crate::serve::{Started, started};
use crate::tokens;

/// Everything here is waited for as long: other things run beside it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A coordinator, and whoever likes to be in.
struct Door {
    started: Started,
    authority: Authority,
    data: tempfile::TempDir,
    config: Transport,
}

impl Door {
    async fn open(max_failed_proofs: u32) -> Self {
        let more = |it: &mut protocol::Config| {
            it.coordinator.max_failed_proofs = max_failed_proofs;
        };
        let (started, data) = started(more).await;
        let authority = Authority::load_or_create(data.path()).unwrap();
        Self { started, authority, data, config: Transport::default() }
    }

    fn addr(&self) -> SocketAddr {
        self.started.endpoint.local_addr()
    }

    /// A token, as the command makes it, that is good for so long.
    async fn token(&self, pool: &str, max_uses: u32, life: SignedDuration) -> Token {
        let (token, now) = (Token::new(&self.authority).unwrap(), Timestamp::now());
        let kept = tokens::TokenRecord {
            id: token.id().to_owned(),
            name: token.id().to_owned(),
            pool: pool.to_owned(),
            key: token.key(),
            max_uses,
            num_uses: 0,
            created: now,
            expires: now + life,
            revoked: None,
        };
        self.started.store.add_token(kept).await.unwrap();
        token
    }

    async fn good(&self) -> Token {
        self.token("gpu-a", 1, SignedDuration::from_mins(15)).await
    }

    async fn join(&self, node: u64, key: &NodeKey, token: &Token) -> Result<Joined, JoinError> {
        self.join_pool(node, key, "", token).await
    }

    async fn join_pool(
        &self,
        node: u64,
        key: &NodeKey,
        pool: &str,
        token: &Token,
    ) -> Result<Joined, JoinError> {
        let (coordinator, node, config) = (self.addr(), NodeId(node), &self.config);
        Joining { coordinator, node, key, pool, config, newest: WIRE_VERSION }.by_token(token).await
    }

    /// A node with a good token gets in, whatever was tried before.
    async fn lets_in(&self) {
        self.join(1, &NodeKey::new().unwrap(), &self.good().await).await.unwrap();
    }
}

fn is_here(member: &Endpoint, addr: SocketAddr) -> impl Future<Output = transport::Connection> {
    let member = member.clone();
    async move { member.dial(addr, Purpose::Control, PeerName::Coordinator).await.unwrap() }
}

/// Goal: 0 of those who may not get in do, each hears why, and a good token is good after each.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_proves_no_good_token_is_told_why_and_the_next_gets_in() {
    let door = Door::open(100).await;
    let key = NodeKey::new().unwrap();
    let life = SignedDuration::from_mins(15);
    let (unknown, expired) = (
        Token::new(&door.authority).unwrap(),
        door.token("gpu-a", 9, SignedDuration::from_secs(-1)).await,
    );
    let revoked = door.token("gpu-a", 9, life).await;
    door.started.store.revoke_token(revoked.id().to_owned(), Timestamp::now()).await.unwrap();
    let used_up = door.token("gpu-a", 1, life).await;
    door.join(7, &NodeKey::new().unwrap(), &used_up).await.unwrap();
    // Known by name, but of another secret.
    let parts: Vec<_> = used_up.text().split('.').map(str::to_owned).collect();
    let secret = unknown.text().split('.').next_back().unwrap().to_owned();
    let forged = format!("{}.{}.{}.{secret}", parts[0], parts[1], parts[2]).parse().unwrap();
    for (token, pool, expected) in [
        (&unknown, "", "must prove a join token"),
        (&forged, "", "must prove a join token"),
        (&expired, "", "is expired"),
        (&revoked, "", "is revoked"),
        (&used_up, "", "is used up"),
        (&door.good().await, "gpu-b", "is to be in pool gpu-b, and its token is for pool gpu-a"),
    ] {
        for _ in 0..2 {
            let error = door.join_pool(2, &key, pool, token).await.unwrap_err();
            assert!(error.is_final() && error.to_string().contains(expected), "{error}");
        }
        door.lets_in().await;
    }
    // A man in the middle has another authority: nothing is proven to him.
    let elsewhere = Door::open(100).await;
    let error = elsewhere.join(2, &key, &door.good().await).await.unwrap_err();
    assert!(!error.is_final() && error.to_string().contains("another coordinator"), "{error}");
    elsewhere.started.stop().await;
    door.lets_in().await;
    door.started.stop().await;
}

/// Who only wants to know hears what a node would hear, and takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_takes_none_of_a_tokens_uses() {
    let door = Door::open(100).await;
    let (token, addr) = (door.good().await, door.addr().into());
    let look = async || reach::look(&addr, NodeId(9), |_| Ok(token.clone()), &door.config).await;
    for _ in 0..2 {
        let seen = look().await;
        assert!(matches!(seen, Reach::Passed(..)), "{seen:?}");
    }
    door.join(2, &NodeKey::new().unwrap(), &token).await.unwrap();
    let seen = look().await;
    let Reach::Kept(_, cause) = &seen else { panic!("{seen:?}") };
    assert!(cause.to_string().contains("is used up"), "{cause}");
    door.started.stop().await;
}

/// Goal: a node that heard no answer asks again and uses its token once, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_asks_again_uses_its_token_once() {
    let door = Door::open(100).await;
    let (key, token) = (NodeKey::new().unwrap(), door.good().await);
    for _ in 0..3 {
        door.join(2, &key, &token).await.unwrap();
    }
    let other = door.join(2, &NodeKey::new().unwrap(), &token).await.unwrap_err();
    assert!(other.to_string().contains("used up"), "{other}");
    door.started.stop().await;
}

/// Goal: whoever tries on and on is told to wait, and keeps nobody out who has a good token.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_whose_proofs_fail_again_and_again_waits() {
    let door = Door::open(3).await;
    let (key, wrong) = (NodeKey::new().unwrap(), Token::new(&door.authority).unwrap());
    for number in 0..6 {
        let error = door.join(2, &key, &wrong).await.unwrap_err();
        assert_eq!(error.is_final(), number < 3, "{error}");
        assert_eq!(error.to_string().contains("too many proofs"), number >= 3, "{error}");
    }
    door.lets_in().await;
    door.started.stop().await;
}

/// Goal: a revoked node is out at once, and comes in by nothing that it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_shown_out_and_comes_in_no_more() {
    let door = Door::open(100).await;
    let (key, token) = (NodeKey::new().unwrap(), door.good().await);
    let identity = door.join(2, &key, &token).await.unwrap().identity;
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let member = Endpoint::bind(local, Some(identity.clone()), &door.config).unwrap();
    let addr = door.addr();
    renew(addr, NodeId(2), &identity, (&door.config, WIRE_VERSION)).await.unwrap();
    door.started.store.revoke_node(NodeId(2), Timestamp::now()).await.unwrap();
    let refused = async {
        loop {
            let cause = is_here(&member, addr).await;
            // It stands, or says why it doesn't.
            match tokio::time::timeout(Duration::from_millis(100), cause.closed()).await {
                Ok(cause) if cause.contains("revoked") => return cause,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it is refused");
    for error in [
        renew(addr, NodeId(2), &identity, (&door.config, WIRE_VERSION)).await.unwrap_err(),
        door.join(2, &key, &token).await.unwrap_err(),
        door.join(2, &NodeKey::new().unwrap(), &door.good().await).await.unwrap_err(),
    ] {
        assert!(error.is_final() && error.to_string().contains("node 0000"), "{error}");
    }
    door.lets_in().await;
    door.started.stop().await;
}

/// Goal: nobody takes over a node that is here, and nobody joins who can't read the token.
/// Method: another secret of the same authority, then the right one, twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_connected_is_taken_over_by_nobody() {
    let door = Door::open(100).await;
    let (addr, key) = (door.addr(), NodeKey::new().unwrap());
    let token =
        |name| Token::load_or_create(&door.data.path().join(name), &door.authority).unwrap();
    let (right, wrong) = (token("join.token"), token("another"));
    let error = door.join(5, &key, &wrong).await.unwrap_err();
    assert!(error.is_final() && error.to_string().contains("--token-file"), "{error}");

    let joined = door.join(5, &key, &right).await.unwrap();
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let member = Endpoint::bind(local, Some(joined.identity.clone()), &door.config).unwrap();
    let connection = is_here(&member, addr).await;
    // It is here once the coordinator has seen it too.
    let error = async {
        loop {
            match door.join(5, &key, &right).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => break error,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, error).await.unwrap();
    assert!(!error.is_final() && error.to_string().contains("connected already"), "{error}");
    renew(addr, NodeId(5), &joined.identity, (&door.config, WIRE_VERSION)).await.unwrap();

    connection.close("over");
    let again = async {
        while door.join(5, &key, &right).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    door.started.stop().await;
}
