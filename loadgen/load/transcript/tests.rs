use super::*;

/// A chat's event of one token.
fn token(id: u64, text: &str) -> Value {
    let logprob = -0.25 * id as f64;
    json!({"choices": [{
        "index": 0, "delta": {"content": text}, "token_ids": [id], "finish_reason": null,
        "logprobs": {"content": [{"token": text, "logprob": logprob, "top_logprobs": []}]},
    }], "usage": null})
}

fn stop(reason: &str, num_tokens: u64) -> Value {
    json!({
        "choices": [{"index": 0, "delta": {}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 5, "completion_tokens": num_tokens},
    })
}

fn events() -> Vec<Value> {
    let role = json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]});
    let texts = ["a", "b", "", "cé", "d", "e"];
    let tokens = texts.iter().zip(1..).map(|(text, id)| token(id, text));
    [role].into_iter().chain(tokens).chain([stop("length", 6)]).collect()
}

fn reference(events: &[Value]) -> Reference {
    let mut recording = Recording::new(Arc::default());
    events.iter().for_each(|event| recording.take(event));
    recording.into_reference().unwrap()
}

fn compared(reference_of: &[Value], events: &[Value], whole: bool) -> Comparison {
    let mut recording = Recording::new(Arc::new(reference(reference_of)));
    events.iter().for_each(|event| recording.take(event));
    recording.compare(whole)
}

#[test]
fn an_answer_equals_itself_and_takes_no_memory() {
    let events = events();
    let mut recording = Recording::new(Arc::new(reference(&events)));
    assert!(!recording.has_begun());
    events.iter().for_each(|event| recording.take(event));
    assert!(recording.compare(true).is_identical());
    assert!(recording.compare(false).is_identical());
    assert_eq!(recording.compare(true).num_equal, 6);
    assert!(recording.tokens.rest.is_empty() && recording.pieces.rest.is_empty());
}

#[test]
fn a_lost_a_repeated_and_an_altered_event_are_found_with_and_without_token_names() {
    let bare = |events: Vec<Value>| {
        let bare = events.into_iter().map(|mut event| {
            if let Some(choice) = event["choices"][0].as_object_mut() {
                choice.remove("token_ids");
                choice.remove("logprobs");
            }
            event
        });
        bare.collect::<Vec<_>>()
    };
    for without_names in [false, true] {
        let view = |events| if without_names { bare(events) } else { events };
        let whole = view(events());
        let found = |events: Vec<Value>| compared(&whole, &view(events), true).num_differing;
        let mut lost = events();
        lost.remove(2);
        assert!(found(lost) >= 4, "from there on");
        let mut repeated = events();
        repeated.insert(2, repeated[2].clone());
        assert!(found(repeated) >= 4);
        let mut altered = events();
        altered[2]["choices"][0]["delta"]["content"] = "x".into();
        assert!(found(altered) > 0, "only its text");
    }
    let mut altered = events();
    altered[3]["choices"][0]["token_ids"][0] = 99.into();
    assert_eq!(compared(&events(), &altered, true).num_differing, 4);
    let mut altered = events();
    altered[3]["choices"][0]["logprobs"]["content"][0]["logprob"] = json!(-0.750000001);
    assert_eq!(compared(&events(), &altered, true).num_differing, 4);
}

#[test]
fn of_a_cut_stream_only_what_came_counts() {
    let mut cut = events();
    cut.truncate(4);
    assert!(compared(&events(), &cut, false).is_identical());
    assert_eq!(compared(&events(), &cut, true).num_differing, 3);
    cut.remove(1);
    assert_eq!(compared(&events(), &cut, false).num_differing, 2);
}

#[test]
fn how_the_text_is_cut_into_pieces_does_not_matter() {
    let piece = |field: &str, text: &str| json!({"choices": [{"delta": {field: text}}]});
    let fine = ["a", "b", "c", "d"].map(|text| piece("content", text));
    let coarse = ["ab", "cd"].map(|text| piece("content", text));
    assert!(compared(&fine, &coarse, true).is_identical());
    assert!(compared(&fine, &coarse[..1], false).is_identical());
    assert!(!compared(&fine, &coarse[..1], true).is_identical());
    let reasoning = ["ab", "cd"].map(|text| piece("reasoning_content", text));
    assert!(!compared(&fine, &reasoning, true).is_identical(), "it isn't the answer");
    assert!(!compared(&fine, &reasoning, false).is_identical());
}

#[test]
fn another_end_is_said_in_words() {
    let ending = |event: Value| {
        let mut other = events();
        *other.last_mut().unwrap() = event;
        let comparison = compared(&events(), &other, true);
        assert_eq!(comparison.num_differing, 0);
        comparison.ending.unwrap()
    };
    let said = "finish_reason \"stop\" where the reference has finish_reason \"length\"";
    assert_eq!(ending(stop("stop", 6)), said);
    assert_eq!(ending(stop("length", 7)), "completion_tokens 7 where the reference has 6");
    assert!(ending(json!({"choices": []})).starts_with("no finish_reason where"));
}

#[test]
fn what_a_server_can_be_compared_by_shows_in_its_answer() {
    let with_ids = reference(&events());
    assert!(Compared::ALL.iter().all(|&compared| with_ids.allows(compared)));
    let mut plain = events();
    for event in &mut plain[1..7] {
        event["choices"][0].as_object_mut().unwrap().remove("token_ids");
    }
    assert!(!reference(&plain).allows(Compared::TokenIds));
    assert!(reference(&plain).allows(Compared::Tokens));
    let completion = json!({"choices": [{
        "text": "ab",
        "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]},
    }]});
    assert!(reference(std::slice::from_ref(&completion)).allows(Compared::Tokens));
    assert_eq!(reference(&[completion]).num_tokens(), 2);
    assert!(!reference(&[json!({"choices": [{"text": "a"}]})]).allows(Compared::Tokens));
    assert!(reference(&[json!({"choices": [{"text": "a"}]})]).allows(Compared::Text));
}

#[test]
fn an_endless_answer_is_counted_but_not_kept() {
    let mut recording = Recording::new(Arc::new(reference(&events())));
    let text = "x".repeat(1 << 20);
    for _ in 0..40 {
        recording.take(&json!({"choices": [{"delta": {"content": text}}]}));
    }
    assert!(recording.pieces.rest.len() < 20);
    assert_eq!(recording.compare(true).num_differing, 6, "tokens come first");
    assert!(recording.into_reference().is_none());
}
