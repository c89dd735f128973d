//! The prefix cache from end to end: what is computed once, and that nobody can tell by an answer.

use futures::future::join_all;
use serde_json::{Value, json};
use tests::cluster::{Cluster, Options};
use tests::golden;

const OFF: &str = "[scheduler]\nprefix_cache = false\n";

fn options(config: &str) -> Options {
    Options::new(golden::fixture("glm").join("bf16")).config(config)
}

/// Tokens of the fixture's vocabulary that no other `text` has in this order.
fn tokens(text: u32, num_tokens: u32) -> Vec<u32> {
    (0..num_tokens).map(|i| 5 + (i * i * 7 + i * 13 + text * 101 + i * text) % 580).collect()
}

async fn counter(cluster: &Cluster, series: &str) -> u64 {
    let metrics = cluster.get("/metrics").await.1;
    let metrics = metrics.as_str().unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
    line.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
}

/// What may not differ: texts, tokens, logprobs in all digits, reasons.
fn choices(answer: &Value) -> &Value {
    &answer["choices"]
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// 64 requests at once that begin alike: the prefix is computed once, and the answers are those of
/// a server that computes everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_common_prefix_is_computed_once_and_changes_no_bit() {
    let (prefix, num_own) = (tokens(0, 1000), 10);
    let on = Cluster::start(options("[scheduler]\nmax_batched_tokens = 256\n").nodes(2, 2)).await;
    let off = Cluster::start(options(OFF)).await;
    let mut requests = Vec::new();
    for i in 0..64 {
        let prompt = [prefix.clone(), tokens(i + 1, num_own)].concat();
        let more = json!({
            "max_tokens": 4, "ignore_eos": true, "logprobs": 3, "temperature": i % 2, "seed": i,
        });
        requests.push(on.request(&prompt, more).await);
    }
    let before = counter(&on, "autoglm_batch_tokens_sum").await;
    let answers = join_all(requests.iter().map(|request| on.complete(request))).await;
    let num_computed = counter(&on, "autoglm_batch_tokens_sum").await - before;
    // 62 whole blocks once, and of each what is left of the prompt and the answer but its last.
    let (once, each) = (62 * 16, 1000 - 62 * 16 + u64::from(num_own) + 3);
    assert_eq!(num_computed, once + 64 * each);
    assert_eq!(counter(&on, "autoglm_prefix_cache_hits_total").await, 63 * once);
    assert_eq!(counter(&on, "autoglm_prefix_cache_queries_total").await, 64 * 1009);
    let missed = "autoglm_prefix_cache_misses_total{reason=\"unknown\"}";
    assert_eq!(counter(&on, missed).await, 64 * 1009 - 63 * once);
    assert_eq!(answers.iter().map(cached).sum::<u64>(), 63 * once);
    for (request, answer) in requests.iter().zip(&answers) {
        let undisturbed = off.complete(request).await;
        assert_eq!(choices(answer), choices(&undisturbed));
        assert_eq!(cached(&undisturbed), 0);
    }
    assert_eq!(counter(&off, "autoglm_prefix_cache_queries_total").await, 0);
    on.stop();
    off.stop();
}

/// A hit of every length: of whole blocks, by another prompt that begins alike, and of all but the
/// last token, by the same again, for every number of tokens in the last block.
#[tokio::test(flavor = "multi_thread")]
async fn bits_are_the_same_at_every_hit_length() {
    let (on, off) = (Cluster::start(options("")).await, Cluster::start(options(OFF)).await);
    let more = || json!({"max_tokens": 8, "ignore_eos": true, "logprobs": 3});
    for num_blocks in 0..=7 {
        let prompt = tokens(100 + num_blocks, 120);
        let begins_alike = [&prompt[..num_blocks as usize * 16], &tokens(99, 20)].concat();
        on.complete(&on.request(&begins_alike, more()).await).await;
        let request = on.request(&prompt, more()).await;
        let answer = on.complete(&request).await;
        assert_eq!(cached(&answer), u64::from(num_blocks) * 16);
        assert_eq!(choices(&answer), choices(&off.complete(&request).await), "{num_blocks} blocks");
    }
    for num_tokens in 32..49 {
        let request = on.request(&tokens(200 + num_tokens, num_tokens), more()).await;
        let first = on.complete(&request).await;
        let again = on.complete(&request).await;
        assert_eq!((cached(&first), cached(&again)), (0, u64::from(num_tokens) - 1));
        assert_eq!(choices(&first), choices(&again), "{num_tokens} tokens");
        assert_eq!(choices(&first), choices(&off.complete(&request).await));
    }
    on.stop();
    off.stop();
}

/// Eight choices: one prompt is computed, each further choice computes its last token, and each
/// answers what it would have on its own.
#[tokio::test(flavor = "multi_thread")]
async fn choices_compute_their_prompt_once_and_answer_the_same() {
    let (on, off) =
        (Cluster::start(options("").nodes(2, 2)).await, Cluster::start(options(OFF)).await);
    for (i, num_tokens) in [20u32, 207, 1007].into_iter().enumerate() {
        let more = json!({
            "max_tokens": 8, "ignore_eos": true, "logprobs": 3, "n": 8, "temperature": 1, "seed": 5,
        });
        let request = on.request(&tokens(300 + i as u32, num_tokens), more).await;
        let before = counter(&on, "autoglm_batch_tokens_sum").await;
        let answer = on.complete(&request).await;
        let num_computed = counter(&on, "autoglm_batch_tokens_sum").await - before;
        assert_eq!(num_computed, u64::from(num_tokens) + 7 + 7 * (1 + 7));
        assert_eq!(choices(&answer), choices(&off.complete(&request).await));
        assert_eq!(cached(&answer), 0, "what its own choices share is no hit of the request's");
    }
    on.stop();
    off.stop();
}

/// Every way to ask says how much of the prompt was there.
#[tokio::test(flavor = "multi_thread")]
async fn usage_tells_cached_tokens_of_chats_and_completions_streamed_or_not() {
    let cluster = Cluster::start(options("")).await;
    let model = cluster.model().await;
    let said = "What begins alike is computed once, whoever asks and however it is asked for.";
    let asked = [
        ("/v1/completions", json!({"model": model, "prompt": said, "max_tokens": 2})),
        (
            "/v1/chat/completions",
            json!({
                "model": model, "max_tokens": 2,
                "messages": [{"role": "user", "content": said}],
            }),
        ),
    ];
    for (path, request) in asked {
        let (status, first) = cluster.post(path, &request).await;
        assert_eq!(status, 200, "{first}");
        let expected = first["usage"]["prompt_tokens"].as_u64().unwrap() - 1;
        assert!(expected > 16 && cached(&first) < expected, "{first}");
        assert_eq!(cached(&cluster.post(path, &request).await.1), expected, "{path}");
        let mut streamed = request.clone();
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({"include_usage": true});
        let events = cluster.stream(path, &streamed).await.text().await.unwrap();
        let usage = events.lines().filter_map(|line| line.strip_prefix("data: {"));
        let mut usage =
            usage.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap());
        let usage = usage.rfind(|chunk| !chunk["usage"].is_null()).unwrap();
        assert_eq!(cached(&usage), expected, "{path}, streamed");
    }
    cluster.stop();
}
