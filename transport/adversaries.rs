//! Whoever has no certificate and means harm: crowds, dawdlers and liars at the door. None gets in,
//! none keeps anything, and in between a good token is good.

use std::sync::Arc;
use std::time::Duration;

use protocol::WIRE_VERSION;
use protocol::config::Transport;

use crate::spoken::JOIN;
use crate::tests::{NODE, coordinator, join, loopback, token};
use crate::{Applicant, Authority, Endpoint, Incoming, Purpose, Token, Verdict, tls};

/// Everything here is waited for as long: other things run beside it.
const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> Transport {
    Transport {
        connect_timeout_ms: 2000,
        max_connections: 8,
        max_unvalidated_handshakes: 2,
        ..Transport::default()
    }
}

/// Meets whoever asks, as a coordinator does; what was wrong with those who may not join.
fn keep_door(
    coordinator: &Endpoint,
    authority: Authority,
    token: &Token,
) -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let (coordinator, authority, key) = (coordinator.clone(), Arc::new(authority), token.key());
    tokio::spawn(async move {
        while let Some(incoming) = coordinator.accept().await {
            let Incoming::Join(request) = incoming else { panic!("{incoming:?}") };
            let (authority, key, tell) = (Arc::clone(&authority), key.clone(), tell.clone());
            tokio::spawn(async move {
                let asking = match request.hear(&config()).await {
                    Ok(asking) => asking,
                    Err(cause) => return drop(tell.send(cause.to_string())),
                };
                let may = |applicant: &Applicant| applicant.knows(&key);
                let verdict = match may(&asking.applicant) {
                    true => Verdict::Admitted { pool: "a".into() },
                    false => Verdict::Refused("no token".into()),
                };
                let _ = asking.answer(&authority, &config(), false, &verdict).await;
            });
        }
    });
    told
}

/// Joins with a good token, as soon as there is a place.
async fn is_let_in(coordinator: &Endpoint, token: &Token) {
    let joined = async {
        while let Err(cause) = join(coordinator.local_addr(), NODE, token, &config()).await {
            assert!(!cause.is_final(), "{cause}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, joined).await.expect("a good token is good");
}

/// A connection that may ask to join, of somebody who trusts anybody.
async fn stranger(coordinator: &Endpoint) -> Option<(Endpoint, quinn::Connection)> {
    let stranger = Endpoint::bind(loopback(), None, &config()).unwrap();
    let crypto = tls::attacker(None, JOIN.map(|(_, name)| name));
    let addr = coordinator.local_addr();
    let connecting = stranger.connect(addr, crypto, Purpose::Control, "any.autoglm").await;
    Some((stranger, connecting.ok()?))
}

#[tokio::test]
async fn what_is_too_long_or_too_slow_is_cut_off_and_named() {
    let (coordinator, authority, dir) = coordinator(&config());
    let token = token(&authority, &dir);
    let mut told = keep_door(&coordinator, authority, &token);
    let version = WIRE_VERSION.to_le_bytes();
    let huge = [&version[..], &u32::MAX.to_le_bytes()].concat();
    let rubbish = [&version[..], &8_u32.to_le_bytes(), &[0xff; 8]].concat();
    for (said, expected) in [
        (&huge[..], "is too long"),
        (&rubbish[..], "malformed"),
        // It says that more will come.
        (&huge[..3], "too long to ask"),
        (&[][..], "too long to ask"),
    ] {
        let (_stranger, connection) = stranger(&coordinator).await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        for byte in said {
            send.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // It would keep the connection, told why or not.
        let cause = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        assert!(cause.contains(expected), "{said:?}: {cause}");
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is cut off");
        is_let_in(&coordinator, &token).await;
    }
}

/// Goal: a crowd that connects and says nothing holds no more places than there are, and keeps
/// nobody out for longer than it may dawdle.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_takes_no_more_places_than_there_are_and_keeps_nobody_out() {
    let (coordinator, authority, dir) = coordinator(&config());
    let token = token(&authority, &dir);
    let mut told = keep_door(&coordinator, authority, &token);
    let crowd = futures::future::join_all((0..100).map(|_| stranger(&coordinator)));
    let crowd: Vec<_> = crowd.await.into_iter().flatten().collect();
    is_let_in(&coordinator, &token).await;
    for (_, connection) in &crowd {
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is cut off");
    }
    let mut num_heard = 0;
    while let Ok(cause) = told.try_recv() {
        assert!(cause.contains("too long to ask") || cause.contains("closed"), "{cause}");
        num_heard += 1;
    }
    assert!(num_heard <= crowd.len(), "{num_heard}");
    is_let_in(&coordinator, &token).await;
}
