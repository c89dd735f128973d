//! Limits of `[http]` that bite, each where a client meets it. Connections' are beside these, in
//! `server_tests.rs`; how many bodies are read at once, in `body.rs`.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server_tests::{completion, post, rest};
use super::tests::{Script, Server, say};
use crate::request::{Event, FinishReason};

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let server = Server::with(
        |request| Script::Say(say(request, "one")),
        |served| served.config.body_timeout_ms = 100,
    )
    .await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let request = post(&completion(), "connection: close\r\n");
    stream.write_all(&request[..request.len() - 1]).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("100 ms (http.body_timeout_ms)"), "{answer}");
}

/// A client that never stops sending what was refused is left with a closed connection.
#[tokio::test]
async fn no_more_of_a_refused_body_is_read_than_configured() {
    let server = Server::with(
        |_| Script::Say(Vec::new()),
        |served| {
            served.config.max_body_bytes = 1000;
            served.config.max_dropped_bytes = 1 << 20;
        },
    )
    .await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1099511627776";
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
    let endless = async {
        let part = vec![b' '; 64 << 10];
        let mut num_bytes = 0_u64;
        while stream.write_all(&part).await.is_ok() {
            num_bytes += part.len() as u64;
        }
        num_bytes
    };
    let num_bytes = tokio::time::timeout(Duration::from_secs(60), endless).await.unwrap();
    // Beside what is read, the buffers of both ends are full.
    assert!((1 << 20..64 << 20).contains(&num_bytes), "{num_bytes}");
}

/// Goal: nothing is kept for who doesn't read, streamed or not. Method: a client reads nothing of
/// an answer that fills all buffers for some time, for longer where the machine is busy; then there
/// is no end to read.
#[tokio::test]
async fn a_client_that_reads_nothing_counts_as_gone() {
    const NUM_BYTES: usize = 32 << 20;
    for stream in [false, true] {
        let server = Server::with(
            |_| {
                let (text, reason) = ("x".repeat(NUM_BYTES), FinishReason::Stop);
                Script::Say(vec![Event::Finished { choice: 0, reason, text }])
            },
            |served| served.config.send_timeout_ms = 100,
        )
        .await;
        let body = json!({"model": "m", "prompt": [5], "stream": stream}).to_string();
        let is_cut_off = async |seconds| {
            let mut unread = TcpStream::connect(server.addr).await.unwrap();
            unread.write_all(&post(&body, "connection: close\r\n")).await.unwrap();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let mut read = Vec::new();
            let _ = unread.read_to_end(&mut read).await;
            assert!(read.starts_with(b"HTTP/1.1 200"));
            read.len() < NUM_BYTES
        };
        assert!(is_cut_off(1).await || is_cut_off(10).await || is_cut_off(30).await);
    }
}

/// However long it takes: only a client that reads nothing at all counts as gone.
#[tokio::test]
async fn a_client_that_reads_slowly_is_answered() {
    let num_bytes = 24 << 20;
    let server = Server::with(
        move |_| {
            let (text, reason) = ("x".repeat(num_bytes), FinishReason::Stop);
            Script::Say(vec![Event::Finished { choice: 0, reason, text }])
        },
        |served| served.config.send_timeout_ms = 1000,
    )
    .await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(&post(&completion(), "connection: close\r\n")).await.unwrap();
    let (mut part, mut num_read) = (vec![0; 4 << 20], 0);
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut num_of_part = 0;
        while num_of_part < part.len() {
            match stream.read(&mut part[num_of_part..]).await.unwrap() {
                0 => break,
                num => num_of_part += num,
            }
        }
        num_read += num_of_part;
        if num_of_part < part.len() {
            break;
        }
    }
    assert!(num_read > num_bytes, "{num_read} of {num_bytes} bytes");
}
