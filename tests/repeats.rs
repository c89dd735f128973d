//! One request, asked again and again while everything else changes: one answer.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures::future::{join, join_all};
use serde_json::{Value, json};
use tests::cluster::{Cluster, Options};
use tests::golden;

/// How often it is asked; more by this variable.
const RUNS: &str = "AUTOGLM_RUNS";

/// A cache that holds three or four of those who ask, and chunks that cut every prompt.
const SMALL: &str = "[scheduler]\nmax_blocks = 24\nmax_num_seqs = 12\nmax_batched_tokens = 24\n\
                     reserved_tokens = 8\n[model]\nmax_model_len = 256\n";

const TIERS: [&str; 4] = ["batch", "standard", "interactive", "realtime"];

/// All that may not differ.
fn said(answer: &Value) -> String {
    let usage = &answer["usage"];
    assert!(usage.get("exact").is_none(), "{usage}");
    json!([answer["choices"], usage["prompt_tokens"], usage["completion_tokens"]]).to_string()
}

async fn total(cluster: &Cluster, series: &str) -> u64 {
    let metrics = cluster.get("/metrics").await.1;
    let lines = metrics.as_str().unwrap().lines().filter(|line| line.starts_with(series));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// At temperature 1 with a seed, of every priority, beside others of every priority who come and go
/// for as long as it takes, in a cache that is too small for all: it gives way, is computed again,
/// finds a prefix or none, in other chunks each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_seeded_answer_is_one_whatever_happens_around_it() {
    let num_runs = std::env::var(RUNS).map_or(40, |runs| runs.parse().unwrap());
    let folder = golden::fixture("glm4").join("f32");
    let prompt = golden::Golden::open(&golden::fixture("glm4")).prompts().remove(1).ids;
    let cluster = Cluster::start(Options::new(&folder).nodes(2, 2).config(SMALL)).await;
    let more = json!({
        "max_tokens": 40, "ignore_eos": true, "logprobs": 5, "temperature": 1, "seed": 11,
        "presence_penalty": 0.3,
    });
    let request = cluster.request(&prompt, more).await;
    let undisturbed = {
        let alone =
            Cluster::start(Options::new(&folder).config("[scheduler]\nprefix_cache = false")).await;
        let answer = said(&alone.complete(&request).await);
        alone.stop();
        answer
    };
    let (is_over, others) = (AtomicBool::new(false), AtomicU32::new(0));
    let load = async |client: u32| {
        while !is_over.load(Ordering::Relaxed) {
            let i = others.fetch_add(1, Ordering::Relaxed);
            // Every third begins as the request does.
            let own = (0..(i * 31 + client * 7) % 90).map(|at| 5 + (at * 11 + i) % 570);
            let common = if i % 3 == 0 { &prompt[..prompt.len() / 2] } else { &prompt[..1] };
            let ids: Vec<u32> = common.iter().copied().chain(own).collect();
            let more = json!({
                "max_tokens": 1 + i * 7 % 60, "ignore_eos": true, "temperature": i % 2, "seed": i,
                "service_tier": TIERS[(i / 2 % 4) as usize], "n": 1 + i % 3,
            });
            cluster.complete(&cluster.request(&ids, more).await).await;
        }
    };
    let runs = async {
        let mut next = 0;
        while next < num_runs {
            let asked = (next..num_runs.min(next + 4)).map(|run| {
                let mut request = request.clone();
                request["service_tier"] = TIERS[run as usize % 4].into();
                let cluster = &cluster;
                async move { said(&cluster.complete(&request).await) }
            });
            for (run, answer) in (next..).zip(join_all(asked).await) {
                assert_eq!(answer, undisturbed, "run {run}");
            }
            next += 4;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    join(runs, join_all((0..6).map(load))).await;
    let preempted = total(&cluster, "autoglm_preempted_sequences_total").await;
    let found = total(&cluster, "autoglm_prefix_cache_hits_total").await;
    let others = others.load(Ordering::Relaxed);
    eprintln!("{num_runs} runs, {others} others: {preempted} gave way, {found} tokens were found");
    assert!(preempted > 0 && found > 0, "{preempted} gave way, {found} tokens were found");
    cluster.stop();
}
