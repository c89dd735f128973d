//! What a cluster answers: the goldens' tokens and logprobs, whatever it is cut into and whoever
//! else is asking.

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, logprob_rows, token_ids};
use tests::fp8;
use tests::golden::{self, Golden, log_softmax};

const WHOLE_VOCABULARY: &str = "[http]\nmax_logprobs = 640\n";

/// Logprobs agree with the golden ones to this much: f32 sums in another order.
const TOLERANCE: f32 = 2e-4;

/// Every fixture, cut into 1, 2 and 4 processes: the goldens' logprobs at every stored position,
/// bit-equal between the cuts, and the goldens' 64 greedy tokens.
async fn fixture_answers_as_its_golden(name: &str, dtype: &str) {
    let folder = golden::fixture(name);
    let golden = Golden::open(&folder);
    let mut first_cut: Option<Vec<Vec<(u32, f32)>>> = None;
    for num_nodes in [1, 2, 4] {
        let options = Options::new(folder.join(dtype)).nodes(num_nodes, num_nodes);
        let cluster = Cluster::start(options.config(WHOLE_VOCABULARY)).await;
        let mut logprobs = Vec::new();
        for (i, prompt) in golden.prompts().iter().enumerate() {
            // Each of so many takes a turn over all others: of a long prompt the best do.
            let top = if prompt.ids.len() > 100 { 20 } else { 640 };
            let more = json!({"max_tokens": 0, "echo": true, "logprobs": top});
            let scored = cluster.complete(&cluster.request(&prompt.ids, more).await).await;
            let more = json!({"max_tokens": 1, "logprobs": 640});
            let first = cluster.complete(&cluster.request(&prompt.ids, more).await).await;
            let more = json!({"max_tokens": 64, "ignore_eos": true});
            let answer = cluster.complete(&cluster.request(&prompt.ids, more).await).await;
            assert_eq!(token_ids(&answer["choices"][0]), prompt.greedy, "{name} prompt {i}");
            assert_eq!(golden::numbers(&answer["choices"][0]["prompt_token_ids"]), prompt.ids);

            // Row p of the golden logits predicts position p + 1; that of the last one is the
            // answer's first.
            let mut rows = logprob_rows(&scored["choices"][0]);
            assert_eq!(rows.len(), prompt.ids.len());
            assert!(rows[0].is_empty(), "nothing predicts the first token");
            rows.remove(0);
            rows.push(logprob_rows(&first["choices"][0])[0].clone());
            let logits = golden.tensor(&format!("logits.{i}"));
            for (row, &position) in prompt.positions.iter().enumerate() {
                let expected = log_softmax(logits.row(row));
                assert!(rows[position].len() >= top, "{name} prompt {i} position {position}");
                for (token, logprob) in &rows[position] {
                    let error = (logprob - expected[*token as usize]).abs();
                    assert!(error < TOLERANCE, "{name} prompt {i} position {position}: {error}");
                }
            }
            logprobs.push(rows.concat());
        }
        let bits = first_cut.get_or_insert_with(|| logprobs.clone());
        assert!(*bits == logprobs, "{name}: {num_nodes} processes differ from one");
        cluster.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn glm_answers_as_its_golden_in_1_2_and_4_processes() {
    fixture_answers_as_its_golden("glm", "bf16").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn glm_edge_answers_as_its_golden_in_1_2_and_4_processes() {
    fixture_answers_as_its_golden("glm-edge", "bf16").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn glm4_answers_as_its_golden_in_1_2_and_4_processes() {
    fixture_answers_as_its_golden("glm4", "f32").await;
}

/// A trained model continues each prompt of its golden: the text that transformers rendered goes
/// in, the same tokens and the same text come out.
async fn writes_its_golden_texts(cluster: &Cluster, golden: &Golden) {
    for prompt in golden.json.as_array().unwrap() {
        let greedy = golden::numbers(&prompt["greedy"]);
        let request = json!({
            "model": cluster.model().await, "prompt": prompt["rendered"], "temperature": 0,
            "max_tokens": greedy.len(), "return_token_ids": true,
        });
        let answer = cluster.complete(&request).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["prompt_token_ids"], prompt["ids"]);
        assert_eq!(token_ids(choice), greedy);
        let text = prompt["text"].as_str().unwrap();
        assert_eq!(choice["text"].as_str(), Some(text.trim_end_matches("<|im_end|>")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixture_of_experts_writes_the_text_of_glass_en_in_2_processes() {
    let cluster = Cluster::start(Options::new(golden::model("glass-en-moe")).nodes(2, 2)).await;
    writes_its_golden_texts(&cluster, &Golden::open(&golden::model("glass-en"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn glass_en_writes_its_golden_texts() {
    let folder = golden::model("glass-en");
    let cluster = Cluster::start(Options::new(&folder).nodes(2, 2)).await;
    writes_its_golden_texts(&cluster, &Golden::open(&folder)).await;
    cluster.stop();
}

/// The capital of France, and the other conversations of SmolLM2's golden, from the GGUF as it is
/// shipped: its own tokenizer, its own template.
#[tokio::test(flavor = "multi_thread")]
async fn smollm2_writes_its_golden_texts() {
    let Some(gguf) = golden::smollm2() else { return };
    let golden = Golden::open(&golden::model("smollm2-135m-instruct"));
    let cluster = Cluster::start(Options::new(gguf).nodes(2, 2)).await;
    writes_its_golden_texts(&cluster, &golden).await;
    let request = json!({
        "model": cluster.model().await, "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let (status, answer) = cluster.post("/v1/chat/completions", &request).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], "The capital of France is Paris.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    cluster.stop();
}

/// What "identical" compares: tokens, text, logprobs in all digits, finish reason, token counts.
fn comparable(answer: &Value) -> Value {
    let choice = &answer["choices"][0];
    json!({
        "index": choice["index"], "text": choice["text"], "token_ids": choice["token_ids"],
        "logprobs": choice["logprobs"], "finish_reason": choice["finish_reason"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "completion_tokens": answer["usage"]["completion_tokens"],
    })
}

/// One request alone, and among 15 others of other lengths: nothing of the answer changes, greedy
/// and at temperature 1 with a seed, on one stage and on two.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_does_not_depend_on_who_else_is_asking() {
    let folder = golden::fixture("glm4").join("f32");
    let mut first: Option<Vec<Value>> = None;
    for num_nodes in [1, 2] {
        let options = Options::new(&folder).nodes(num_nodes, num_nodes);
        // Small steps, so that prompts are cut into chunks differently in a crowd.
        let config = "[scheduler]\nmax_batched_tokens = 48\n";
        let cluster = Cluster::start(options.config(config)).await;
        let prompt = Golden::open(&golden::fixture("glm4")).prompts().remove(1).ids;
        let mut answers = Vec::new();
        for temperature in [0, 1] {
            let more = json!({
                "max_tokens": 40, "logprobs": 5, "temperature": temperature, "seed": 7,
                "ignore_eos": true,
            });
            let request = cluster.request(&prompt, more).await;
            let alone = comparable(&cluster.complete(&request).await);
            let mut crowd = vec![request.clone()];
            for i in 1..16u32 {
                let ids: Vec<u32> = (0..i * 9).map(|j| (i * 37 + j * 11) % 590).collect();
                let more = json!({
                    "max_tokens": 10 + i * 3, "temperature": i % 2, "seed": i, "ignore_eos": true,
                });
                crowd.push(cluster.request(&ids, more).await);
            }
            crowd.rotate_right(5);
            let answered = crowd.iter().map(|request| cluster.complete(request));
            let answered = futures::future::join_all(answered).await;
            assert_eq!(comparable(&answered[5]), alone, "temperature {temperature}");
            answers.push(alone);
        }
        assert_ne!(answers[0]["token_ids"], answers[1]["token_ids"], "temperature 1 samples");
        assert_eq!(*first.get_or_insert_with(|| answers.clone()), answers, "{num_nodes} nodes");
        cluster.stop();
    }
}

/// e4m3 weights and a cache of f16: bit-equal between cuts, alone and beside others, and near what
/// the same values in f32 answer.
#[tokio::test(flavor = "multi_thread")]
async fn fp8_weights_and_an_f16_cache_answer_alike_in_1_and_3_processes() {
    let folder = tempfile::tempdir().unwrap();
    let (fp8, floats) = fp8::models(&golden::fixture("glm4").join("bf16"), folder.path());
    let prompts = Golden::open(&golden::fixture("glm4")).prompts();
    let mut answers = Vec::new();
    for (model, num_nodes) in [(&floats, 1), (&fp8, 1), (&fp8, 3)] {
        let options = Options::new(model).nodes(num_nodes, num_nodes);
        let cluster = Cluster::start(options.config("[model]\nkv_cache_dtype = \"f16\"\n")).await;
        let mut requests = Vec::new();
        for prompt in &prompts {
            let more = json!({"max_tokens": 24, "ignore_eos": true, "logprobs": 1});
            requests.push(cluster.request(&prompt.ids, more).await);
        }
        let together = requests.iter().map(|request| cluster.complete(request));
        let together = futures::future::join_all(together).await;
        for (request, among) in requests.iter().zip(&together) {
            assert_eq!(comparable(&cluster.complete(request).await), comparable(among));
        }
        let first = |answer: &Value| logprob_rows(&answer["choices"][0]).swap_remove(0)[0];
        let firsts: Vec<_> = together.iter().map(first).collect();
        answers.push((together.iter().map(comparable).collect::<Vec<_>>(), firsts));
        cluster.stop();
    }
    let [(_, floats), (alone, firsts), (cut, _)] = &answers[..] else { unreachable!() };
    assert_eq!(alone, cut);
    for ((token, found), (same, expected)) in firsts.iter().zip(floats) {
        assert!(token == same && (found - expected).abs() < 2e-3, "{found}, not {expected}");
    }
}

/// Several stages share a node when there are more stages than nodes.
#[tokio::test(flavor = "multi_thread")]
async fn four_stages_on_one_node_answer_like_one() {
    let folder = golden::fixture("glm");
    let prompt = Golden::open(&folder).prompts().remove(0);
    let cluster = Cluster::start(Options::new(folder.join("bf16")).nodes(1, 4)).await;
    let (_, stages) = cluster.get("/health/stages").await;
    assert_eq!(stages["pipelines"][0]["stages"].as_array().unwrap().len(), 4);
    let more = json!({"max_tokens": 64, "ignore_eos": true});
    let answer = cluster.complete(&cluster.request(&prompt.ids, more).await).await;
    assert_eq!(token_ids(&answer["choices"][0]), prompt.greedy);
    cluster.stop();
}
