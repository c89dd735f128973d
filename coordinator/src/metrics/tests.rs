use super::nodes::MAX_LOST;
use super::*;
use protocol::{NodeId, StageTiming};
use std::collections::HashSet;
use std::time::Instant;

fn counted(compat: MetricsCompat) -> Metrics {
    let metrics = Metrics::new("a \"name\"\n", &config::Metrics { compat, ..Default::default() });
    metrics.pipeline_lost();
    let timing = StageTiming { compute_us: 1500, received_bytes: 64, ..StageTiming::default() };
    metrics.step(&StepReport {
        pipeline: protocol::PipelineId(0),
        ended: Instant::now(),
        duration: Duration::from_millis(3),
        num_tokens: 7,
        timings: &[timing],
        trip: None,
    });
    metrics.queued([0, 1, 0, 0]);
    metrics.running(2);
    metrics.admitted(Duration::from_millis(1));
    metrics.kv(3, 4);
    metrics.nodes([NodeId(1)].into_iter(), true);
    metrics.first_token(Duration::from_millis(12), None);
    metrics.next_token(Duration::from_millis(12), None);
    metrics.decoded(Duration::from_millis(20), 3, None);
    metrics.decoded(Duration::ZERO, 1, None);
    let tokens = Tokens { num_prompt: 3, num_generated: 2 };
    metrics.answered(tokens, Duration::from_secs(1), None);
    metrics.computed(tokens);
    metrics.ended(200);
    metrics.failed("queue_full");
    metrics.finished("stop", 2);
    metrics.shed("queue_full");
    metrics.http("POST", "/v1/completions", Duration::from_secs(1));
    metrics
}

#[test]
fn the_text_holds_what_was_counted() {
    let metrics = counted(MetricsCompat::None);
    let text = metrics.text();
    for line in [
        "autoglm_requests_total{model=\"a \\\"name\\\"\\n\",class=\"standard\",code=\"200\"} 1",
        "autoglm_errors_total{kind=\"queue_full\"} 1",
        "autoglm_choices_total{finished_reason=\"stop\"} 2",
        "autoglm_queue_depth{class=\"standard\"} 1",
        "autoglm_requests_running 2",
        "autoglm_queue_wait_seconds_count 1",
        "autoglm_time_to_first_token_seconds_bucket{le=\"0.015\"} 1",
        "autoglm_time_per_output_token_seconds_sum 0.01",
        "autoglm_time_per_output_token_seconds_count 1",
        "autoglm_inter_token_latency_seconds_count 1",
        "autoglm_request_duration_seconds_count 1",
        "autoglm_prompt_tokens_total 3",
        "autoglm_generation_tokens_total 2",
        "autoglm_request_prompt_tokens_bucket{le=\"4.0\"} 1",
        "autoglm_request_generation_tokens_sum 2.0",
        "autoglm_kv_usage_ratio 0.75",
        "autoglm_kv_blocks{state=\"used\"} 3",
        "autoglm_kv_blocks{state=\"free\"} 1",
        "autoglm_step_seconds_count 1",
        "autoglm_batch_tokens_bucket{le=\"8.0\"} 1",
        "autoglm_stage_compute_seconds_count{stage=\"0\"} 1",
        "autoglm_stage_wait_seconds_count{stage=\"0\"} 1",
        "autoglm_stage_bubble_ratio{stage=\"0\"} 0.5",
        "autoglm_activation_bytes_total{stage=\"0\"} 64",
        "autoglm_node_up{node=\"0000000000000001\"} 1",
        "autoglm_pipeline_ready 1",
        "autoglm_pipeline_lost_total 1",
        "autoglm_shed_total{reason=\"queue_full\"} 1",
        "http_request_duration_seconds_count{method=\"POST\",endpoint=\"/v1/completions\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    metrics.pipeline_lost();
    let is_now = metrics.text().contains("autoglm_stage_bubble_ratio{");
    assert!(!is_now, "a lost pipeline has no stages");
}

#[test]
fn a_bucket_names_the_trace_of_a_traced_request() {
    let metrics = Metrics::new("m", &config::Metrics::default());
    let trace = TraceId([0xab; 16]);
    metrics.first_token(Duration::from_millis(12), Some(trace));
    metrics.first_token(Duration::from_millis(13), None);
    metrics.answered(
        Tokens { num_prompt: 1, num_generated: 1 },
        Duration::from_millis(14),
        Some(trace),
    );
    let text = metrics.text();
    for name in ["time_to_first_token", "request_duration"] {
        let bucket = format!("autoglm_{name}_seconds_bucket{{le=\"0.015\"}} ");
        let sample = text.lines().find_map(|line| line.strip_prefix(&bucket)).unwrap();
        let exemplar = format!("# {{trace_id=\"{trace}\"}} 0.01");
        assert!(sample.contains(&exemplar), "{sample}");
    }
    assert_eq!(text.matches("trace_id").count(), 2, "{text}");
    assert!(!metrics.plain_text().contains("trace_id"));
}

#[test]
fn nothing_is_counted_where_that_is_switched_off() {
    let metrics = Metrics::new("m", &config::Metrics { enabled: false, ..Default::default() });
    metrics.first_token(Duration::from_millis(12), None);
    metrics.ended(200);
    metrics.running(3);
    let text = metrics.text();
    assert!(text.contains("time_to_first_token_seconds_count 0"), "{text}");
    assert!(text.contains("autoglm_requests_running 0"), "{text}");
    assert!(!text.contains("autoglm_requests_total{"), "{text}");
}

#[test]
fn a_lost_node_is_told_of_until_a_pipeline_serves() {
    let metrics = Metrics::new("m", &config::Metrics::default());
    let up = |node: u64| {
        let (series, text) = (format!("autoglm_node_up{{node=\"{node:016x}\"}} "), metrics.text());
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        line.map(|value| value.parse::<u8>().unwrap())
    };
    metrics.nodes([NodeId(1), NodeId(2)].into_iter(), true);
    metrics.nodes([NodeId(2)].into_iter(), false);
    assert_eq!((up(1), up(2)), (Some(0), Some(1)));
    metrics.nodes([NodeId(2), NodeId(1)].into_iter(), false);
    assert_eq!((up(1), up(2)), (Some(1), Some(1)), "it came back");
    metrics.nodes([NodeId(3)].into_iter(), false);
    metrics.nodes([NodeId(3)].into_iter(), true);
    assert_eq!((up(1), up(2), up(3)), (None, None, Some(1)), "others took their place");
    for node in 10..1000 {
        metrics.nodes([NodeId(node)].into_iter(), false);
    }
    let num_series = metrics.text().matches("autoglm_node_up{").count();
    assert_eq!(num_series, MAX_LOST + 1, "nodes that come and go");
}

#[test]
fn vllms_names_are_there_when_asked_for_with_vllms_labels() {
    assert!(!counted(MetricsCompat::None).text().contains("vllm:"));
    let text = counted(MetricsCompat::Vllm).text();
    let labels = "model_name=\"a \\\"name\\\"\\n\",engine=\"0\"";
    for (name, more, value) in [
        ("num_requests_running", "", "2"),
        ("num_requests_waiting", "", "1"),
        ("kv_cache_usage_perc", "", "0.75"),
        ("prompt_tokens_total", "", "3"),
        ("generation_tokens_total", "", "2"),
        ("request_success_total", ",finished_reason=\"stop\"", "2"),
        ("time_to_first_token_seconds_bucket", ",le=\"0.015\"", "1"),
        ("inter_token_latency_seconds_count", "", "1"),
        ("e2e_request_latency_seconds_sum", "", "1.0"),
        ("request_queue_time_seconds_count", "", "1"),
    ] {
        let same = |line: &str| {
            let Some(rest) = line.strip_prefix(&format!("vllm:{name}{{")) else { return false };
            // The order of labels is the library's.
            let Some((found, is)) = rest.rsplit_once("} ") else { return false };
            is == value
                && found.len() == labels.len() + more.len()
                && found.contains(labels)
                && found.contains(more.trim_start_matches(','))
        };
        assert!(text.lines().any(same), "no {name} {more} {value} in\n{text}");
    }
}

/// What promtool's linter asks for, and OpenMetrics' grammar where a scraper would stumble.
#[test]
fn the_text_is_openmetrics() {
    let text = counted(MetricsCompat::None).text();
    let body = text.strip_suffix("# EOF\n").unwrap();
    let (mut names, mut kind, mut name) = (HashSet::new(), "", "");
    let (mut helped, mut units) = (HashSet::new(), HashSet::new());
    for line in body.lines() {
        let mut words = line.splitn(4, ' ');
        if line.starts_with('#') {
            let (_, what, of, rest) =
                (words.next(), words.next().unwrap(), words.next().unwrap(), words.next());
            match what {
                "TYPE" => {
                    (name, kind) = (of, rest.unwrap());
                    assert!(names.insert(of), "{of} twice");
                }
                "HELP" => assert!(helped.insert(of) && !rest.unwrap().is_empty()),
                "UNIT" => assert!(units.insert(of) && of.ends_with(rest.unwrap())),
                other => panic!("# {other}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
        let suffix = series.split('{').next().unwrap().strip_prefix(name).unwrap();
        let expected: &[&str] = match kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{other}"),
        };
        assert!(expected.contains(&suffix), "{line} is a {kind}");
    }
    assert_eq!(names, helped);
    for name in &names {
        assert!(!name.ends_with("_total"), "the suffix is the samples': {name}");
        assert!(name.starts_with("autoglm_") || *name == "http_request_duration_seconds");
        let has_unit = name.ends_with("_seconds") || name.contains("duration");
        assert_eq!(units.contains(name), has_unit, "{name}");
    }
}

#[test]
fn buckets_rise_and_resolve_10_to_200_ms() {
    for buckets in [&SECONDS[..], &TOKENS[..]] {
        assert!(buckets.windows(2).all(|pair| pair[0] < pair[1]));
    }
    let felt = SECONDS.iter().filter(|bound| (0.01..=0.2).contains(*bound));
    assert!(felt.count() >= 10);
}
