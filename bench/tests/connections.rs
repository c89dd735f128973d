//! How many connections requests make.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loadgen::client::request::Endpoint;
use loadgen::client::{Connections, Manner, Server};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                      transfer-encoding: chunked\r\n\r\n\
                      40\r\ndata: {\"choices\": [{\"delta\": {\"content\": \"a\"}}]}\n\n\
                      data: [DONE]\n\n\r\n";

/// Answers every request of a connection for as long as the client keeps it.
async fn serve(connection: TcpStream) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut num_bytes = 0;
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if let Some(length) = line.strip_prefix("content-length: ") {
                num_bytes = length.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        connection.read_exact(&mut vec![0; num_bytes]).await?;
        connection.write_all(ANSWER.as_bytes()).await?;
        // As servers do: the end of the body comes in a packet of its own.
        tokio::time::sleep(Duration::from_millis(3)).await;
        connection.write_all(b"0\r\n\r\n").await?;
    }
}

#[tokio::test]
async fn a_pool_makes_one_connection_where_each_request_would_make_its_own() {
    for (connections, expected) in [(Connections::Pooled, 1), (Connections::PerRequest, 5)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(connection));
            }
        });
        let manner = Manner { connections, ..Manner::default() };
        let server = Server::asked(&url, Duration::from_secs(5), manner).unwrap();
        for _ in 0..5 {
            let body = serde_json::json!({"stream": true});
            let answer = server.ask(Endpoint::Chat, &body, |_: &str| ()).await.unwrap();
            assert_eq!(answer.pieces.len(), 1);
            // The client learns of a connection's end in its own time.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(accepted.load(Ordering::SeqCst), expected, "{connections:?}");
    }
}
