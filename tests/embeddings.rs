//! Embeddings from end to end.

use futures::future::join_all;
use serde_json::{Value, json};
use tests::cluster::{Cluster, Options};
use tests::golden;

async fn embed(cluster: &Cluster, more: Value) -> Value {
    let mut body = json!({"model": cluster.model().await});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) = cluster.post("/v1/embeddings", &body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn values(answer: &Value, index: usize) -> Vec<f32> {
    serde_json::from_value(answer["data"][index]["embedding"].clone()).unwrap()
}

/// Goal: an embedding is a function of its text alone: not of its company, of chunks, of what the
/// prefix cache had, or of where the model is cut. Method: bits of the same texts, one by one, all
/// at once beside answers, and over two stages with small chunks.
#[tokio::test(flavor = "multi_thread")]
async fn an_embedding_is_one_and_the_same_however_it_is_computed() {
    let texts: Vec<Vec<u32>> =
        (1..9).map(|i| (0..i * 9).map(|at| (5 + at * 7 + i * 3) % 500).collect()).collect();
    let mut expected: Vec<Vec<f32>> = Vec::new();
    for (stages, config) in [(1, ""), (2, "[scheduler]\nmax_batched_tokens = 24\n")] {
        let folder = golden::fixture("glm4").join("f32");
        let cluster =
            Cluster::start(Options::new(folder).nodes(stages, stages).config(config)).await;
        let mut alone = Vec::new();
        for text in &texts {
            alone.push(values(&embed(&cluster, json!({"input": text})).await, 0));
        }
        if expected.is_empty() {
            expected.clone_from(&alone);
        }
        assert_eq!(alone, expected, "{stages} stages");
        let request = cluster.request(&[7, 8, 9], json!({"max_tokens": 40, "ignore_eos": true}));
        let request = request.await;
        let (together, _) = tokio::join!(
            embed(&cluster, json!({"input": texts})),
            join_all((0..4).map(|_| cluster.complete(&request))),
        );
        let together: Vec<_> = (0..texts.len()).map(|index| values(&together, index)).collect();
        assert_eq!(together, expected, "{stages} stages, all at once");
        cluster.stop();
    }
    let length =
        |values: &[f32]| values.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt();
    assert!(expected.iter().all(|it| it.len() == 64 && (length(it) - 1.0).abs() < 1e-6));
    assert!((1..8).all(|i| expected[i] != expected[0]), "each has its own");
}

/// Goal: it is the state that the model's reference has after the final norm. Method: the fixture's
/// own prompt, whose hidden states are known.
#[tokio::test(flavor = "multi_thread")]
async fn an_embedding_is_the_last_hidden_state_of_the_reference() {
    let folder = golden::fixture("glm4");
    let reference = golden::Golden::open(&folder);
    let states = reference.tensor("hidden.1.5");
    let last = states.row(states.len() - 1);
    let ids = &reference.prompts()[1].ids;
    let cluster = Cluster::start(Options::new(folder.join("f32"))).await;
    let answer = embed(&cluster, json!({"input": ids})).await;
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    let scale = last.iter().map(|it| it * it).sum::<f32>().sqrt();
    for (found, due) in values(&answer, 0).into_iter().zip(last) {
        assert!((found - due / scale).abs() < 1e-4, "{found}, {due} over {scale}");
    }
    cluster.stop();
}
