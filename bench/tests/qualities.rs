//! What quantisation costs, on weights that were never quantised; and a peer that is left out.

use std::path::Path;

use bench::engine::quality::{Said, listen, windows};
use protocol::config::Quantize;
use shaders::matmul::Products;

/// What rounding activations to eight bits adds.
const PACKED: f64 = 0.005;

#[test]
fn rounding_a_trained_model_costs_no_more_than_is_said() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = here.join("../tests/models/glass-en");
    let text = std::fs::read_to_string(here.join("texts/alice.txt")).unwrap();
    let windows = windows(&model, Some(&text)).unwrap();
    let listen = |quantize, products| -> Option<Said> {
        match listen(&model, None, (quantize, products), &windows) {
            Ok(said) => Some(said),
            Err(cause) => {
                eprintln!("skipped: quality ({cause:#})");
                None
            }
        }
    };
    let Some(none) = listen(Quantize::None, Products::Plain) else { return };
    // Of 1024 tokens; a model that is computed wrongly finds each as likely as any.
    assert!(none.perplexity() < 100.0, "perplexity {}", none.perplexity());
    let change = |said: &Said, from: &Said| said.perplexity() / from.perplexity() - 1.0;
    let [_, int4] = [(Quantize::Int8, 0.005), (Quantize::Int4, 0.08)].map(|(quantize, most)| {
        let said = listen(quantize, Products::Plain).unwrap();
        let change = change(&said, &none);
        assert!(change < most, "{quantize:?}: {change}");
        assert!(said.logit_error(&none) > 0.0, "{quantize:?} rounds");
        said
    });
    let packed = listen(Quantize::Int4, Products::PackedDot).unwrap();
    let change = change(&packed, &int4);
    assert!(change < PACKED, "packed dot: {change}");
    assert!(packed.logit_error(&int4) > 0.0, "packed dot products round");
}

#[cfg(not(feature = "peer-burn"))]
#[test]
fn a_peer_that_is_not_built_in_is_said_how_to_get() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_autoglm-bench"));
    let ended = command.args(["kernels", "--peer", "burn"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("cargo run -p bench --features peer-burn -- kernels --peer"), "{said}");
}
