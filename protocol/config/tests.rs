use super::*;

const CLUSTER_TOML: &str = include_str!("../../cluster.toml");

#[test]
fn cluster_toml_spells_out_every_default() {
    let file: toml::Table = CLUSTER_TOML.parse().unwrap();
    assert_eq!(file, toml::Table::try_from(Config::default()).unwrap());
    assert_eq!(Config::parse(CLUSTER_TOML), Ok(Config::default()));
}

#[test]
fn every_key_of_cluster_toml_has_a_comment_above_it() {
    let lines: Vec<_> = CLUSTER_TOML.lines().collect();
    for pair in lines.windows(2) {
        if pair[1].contains(" = ") && !pair[1].starts_with('#') {
            assert!(pair[0].starts_with('#'), "no comment above: {}", pair[1]);
        }
    }
}

#[test]
fn a_misspelt_key_is_refused_by_name() {
    let error = Config::parse("[scheduler]\nmax_num_seq = 3").unwrap_err();
    assert!(error.to_string().contains("max_num_seq"), "{error}");
}

#[test]
fn a_value_that_cannot_work_is_refused() {
    let error = Config::parse("[transport]\nidle_timeout_ms = 100").unwrap_err();
    assert_eq!(
        error.to_string(),
        "transport.idle_timeout_ms = 100: must be at least twice transport.keep_alive_ms"
    );
    for (lines, name) in [
        ("endpoint = \"https://collector:4318\"", "traces.endpoint = https://collector:4318"),
        ("endpoint = \"4318\"", "traces.endpoint = 4318"),
        ("sample_ratio = 1.5", "traces.sample_ratio = 1.5"),
        ("sample_ratio = nan", "traces.sample_ratio = NaN"),
        ("max_batch_spans = 4096", "traces.max_batch_spans = 4096"),
        ("steps_every = 0", "traces.steps_every = 0"),
    ] {
        let error = Config::parse(&format!("[traces]\n{lines}")).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
}
