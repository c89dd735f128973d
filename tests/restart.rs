//! The coordinator is killed and started again: nodes keep their layers, answers that were asked
//! for as durable go on, and all others hear that they don't.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, Process};
use tests::golden;
use tests::said::Said;

const PATIENCE: Duration = Duration::from_secs(120);

fn options() -> Options {
    let options = Options::new(golden::model("glass-en")).nodes(0, 2);
    options.config("[coordinator]\nsettle_ms = 200\n")
}

/// One pipeline of two stages, on nodes that no coordinator starts or ends.
async fn cluster(options: &Options) -> (Cluster, Vec<Process>) {
    let cluster = Cluster::launch(options);
    let dir = |number: usize| -> PathBuf { cluster.data.path().join(format!("joined-{number}")) };
    let nodes = (0..2).map(|number| cluster.join(&dir(number), &[])).collect();
    cluster.serving(1, PATIENCE).await;
    (cluster, nodes)
}

/// What a client has of an answer: whole events only.
#[derive(Debug, Default)]
struct Client {
    id: String,
    said: Said,
    last: Option<String>,
    buffer: Vec<u8>,
    // The longest pause between two tokens, and when it was over.
    last_token: Option<Instant>,
    pause: Option<(Duration, Instant)>,
    failed: Option<String>,
}

impl Client {
    /// Reads on until the answer ends, the stream does, or so many tokens are there.
    async fn read(&mut self, stream: &mut reqwest::Response, num_tokens: usize) {
        while self.said.token_ids.len() < num_tokens && !self.said.is_done {
            let Ok(Some(chunk)) = stream.chunk().await else { return };
            self.buffer.extend(chunk);
            while let Some(end) = self.buffer.windows(2).position(|it| it == b"\n\n") {
                let event: Vec<_> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).unwrap();
                let id = event.lines().find_map(|line| line.strip_prefix("id: "));
                self.last = id.map(str::to_owned).or(self.last.take());
                for line in event.lines() {
                    match self.said.hear(line) {
                        Ok(0) => {}
                        Ok(_) => self.token(),
                        Err(error) => self.failed = Some(error),
                    }
                }
            }
        }
    }

    fn token(&mut self) {
        let now = Instant::now();
        let pause = self.last_token.replace(now).map(|last| (now - last, now));
        self.pause = self.pause.max(pause);
    }

    /// Asks, and reads so many tokens; the rest of the stream.
    async fn ask(cluster: &Cluster, request: &Value, num_tokens: usize) -> Self {
        let mut stream = cluster.stream("/v1/completions", request).await;
        assert_eq!(stream.status(), 200, "{}", cluster.process.log());
        let id = stream.headers()["x-request-id"].to_str().unwrap().to_owned();
        let mut client = Self { id, ..Self::default() };
        client.read(&mut stream, num_tokens).await;
        client
    }

    /// Comes back for the rest, by GET or by where it asked.
    async fn come_back(&mut self, cluster: &Cluster, by_get: bool) -> reqwest::Response {
        self.buffer.clear();
        let client = reqwest::Client::new();
        let request = match by_get {
            true => client.get(format!("{}/v1/requests/{}/events", cluster.http, self.id)),
            false => client.post(format!("{}/v1/completions", cluster.http)).body("{}"),
        };
        let last =
            self.last.iter().fold(request, |request, last| request.header("Last-Event-ID", last));
        last.send().await.unwrap()
    }
}

async fn requests(cluster: &Cluster, durable: bool, range: std::ops::Range<u32>) -> Vec<Value> {
    let mut requests = Vec::new();
    for i in range {
        let more = json!({
            "max_tokens": 110, "ignore_eos": true, "stream": true, "return_token_ids": true,
            "logprobs": 2, "temperature": if i % 2 == 0 { 0.0 } else { 1.0 }, "seed": 7 + i,
            "frequency_penalty": if i % 3 == 0 { 0.5 } else { 0.0 },
            "stream_options": {"include_usage": true}, "durable": durable,
        });
        requests.push(cluster.request(&[5 + i, 9, 7 + i], more).await);
    }
    requests
}

/// Goal: nobody's durable answer is lost or other than it would have been, and no layer is loaded
/// twice. Method: kill -9 under durable and ordinary streams, before anything and after some
/// tokens; what nodes say of how many parts they had to read.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_costs_no_durable_answer_and_no_layer() {
    let options = options();
    let (cluster, mut nodes) = cluster(&options).await;
    let (durable, ordinary) =
        (requests(&cluster, true, 0..6).await, requests(&cluster, false, 0..6).await);
    let undisturbed = ordinary.iter().map(|it| Client::ask(&cluster, it, usize::MAX));
    let undisturbed = futures::future::join_all(undisturbed).await;

    let mut clients = futures::future::join_all(
        durable.iter().enumerate().map(|(i, it)| Client::ask(&cluster, it, 3 + 10 * i)),
    )
    .await;
    let lost = ordinary.iter().map(|it| Client::ask(&cluster, it, 110)).collect::<Vec<_>>();
    let killing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.process.signal("KILL");
        Instant::now()
    };
    let (lost, killed) = tokio::join!(futures::future::join_all(lost), killing);
    // The connection has ended before the answer did, which clients tell from a whole answer.
    assert!(lost.iter().any(|it| !it.said.is_done), "they all were faster");
    let cluster = cluster.replace(&options).await;

    let client = reqwest::Client::new();
    let refused = client.post(format!("{}/v1/completions", cluster.http)).json(&ordinary[0]).send();
    let refused = refused.await.unwrap();
    assert_eq!(refused.status(), 503, "before a pipeline serves");
    assert!(refused.headers().contains_key("retry-after"));
    let body: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(body["error"]["code"], "no_pipeline", "{body}");

    // They may come back before there is a pipeline; one does so twice.
    let back = clients.iter_mut().enumerate().map(async |(i, client)| {
        let mut stream = client.come_back(&cluster, i % 2 == 0).await;
        assert_eq!(stream.status(), 200, "{}", stream.text().await.unwrap());
        client.read(&mut stream, if i == 0 { 40 } else { usize::MAX }).await;
        if i == 0 {
            let mut stream = client.come_back(&cluster, true).await;
            client.read(&mut stream, usize::MAX).await;
        }
    });
    let back = tokio::time::timeout(PATIENCE, futures::future::join_all(back)).await;
    back.unwrap_or_else(|_| panic!("{}", cluster.process.log()));
    for (client, expected) in clients.iter().zip(&undisturbed) {
        assert_eq!(client.failed, None);
        assert_eq!(client.said, expected.said, "{}", client.id);
    }
    let next = clients.iter().filter_map(|it| it.pause.map(|(_, over)| over - killed));
    println!("from the kill to the next token: {:?}", next.collect::<Vec<_>>());

    for node in &mut nodes {
        let log = node.log();
        let read: Vec<_> = log.lines().filter(|it| it.contains("weights are on the")).collect();
        assert_eq!(read.len(), 2, "{log}");
        assert!(!read[0].contains("num_read=0") && read[1].contains("num_read=0"), "{read:?}");
    }
    // Ordinary answers are gone, and were kept nowhere.
    let gone = format!("/v1/requests/{}/events", lost[0].id);
    let (status, body) = cluster.get(&gone).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("request_not_found")), "{body}");
    // Whoever has heard everything is told not to come again.
    let done = clients[1].come_back(&cluster, true).await;
    assert_eq!(done.status(), 204);
    cluster.stop();
}

/// Goal: a coordinator that is asked to stop interrupts a durable answer, and doesn't end it.
#[tokio::test(flavor = "multi_thread")]
async fn a_durable_answer_survives_a_shutdown_and_its_client_is_told() {
    let mut options = options();
    options.config += "drain_timeout_ms = 1\n";
    let (cluster, _nodes) = cluster(&options).await;
    let request = requests(&cluster, false, 1..2).await.remove(0);
    let undisturbed = Client::ask(&cluster, &request, usize::MAX).await;
    let request = requests(&cluster, true, 1..2).await.remove(0);
    let mut stream = cluster.stream("/v1/completions", &request).await;
    let id = stream.headers()["x-request-id"].to_str().unwrap().to_owned();
    let mut client = Client { id, ..Client::default() };
    client.read(&mut stream, 3).await;
    cluster.process.signal("TERM");
    client.read(&mut stream, usize::MAX).await;
    assert!(!client.said.is_done && client.last.is_some(), "{client:?}");
    let told = client.failed.take().expect("it is told why");
    assert!(told.contains("shutting_down"), "{told}");
    let cluster = cluster.replace(&options).await;
    let mut stream = client.come_back(&cluster, true).await;
    client.read(&mut stream, usize::MAX).await;
    assert_eq!(client.said, undisturbed.said);
    cluster.stop();
}
