//! Configurations in which anything stands anywhere.

use std::fs;

use proptest::prelude::*;
use serde_json::Value;

use crate::tensors::Weights;
use crate::tests::fixture;
use crate::{huggingface, tokenizer};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        let key = prop_oneof![Just("rope_type"), Just("rope_theta"), Just("type"), Just("content")];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..4)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn changed_configurations_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let from = fixture("fixtures/glm4/bf16");
        let mut fields: Value =
            serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
        let mut keys: Vec<String> = fields.as_object().unwrap().keys().cloned().collect();
        keys.extend(
            ["rope_parameters", "rope_scaling", "bos_token_id", "quantization_config"]
                .map(str::to_owned),
        );
        for (key, value) in changes {
            fields[&keys[key.index(keys.len())]] = value;
        }
        fs::write(dir.path().join("config.json"), fields.to_string()).unwrap();
        fs::write(dir.path().join("generation_config.json"), fields.to_string()).unwrap();
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), fields.to_string()).unwrap();
        let _ = tokenizer::read(dir.path());
        let Ok(found) = huggingface::config(dir.path()) else { return Ok(()) };
        let tensors = huggingface::tensors(&from, found.scaling).unwrap();
        let _ = Weights::find(tensors, found.layout, &found.model);
    }
}
