//! Metrics as text: OpenMetrics, and Prometheus' older form for whoever asks for it.

use std::fmt::Write;

/// Content type of OpenMetrics text.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Content type of the older form.
pub(crate) const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a scraper that says this in `Accept` reads the older form only.
pub(crate) fn wants_plain(accept: &str) -> bool {
    accept.contains("text/plain") && !accept.contains("application/openmetrics-text")
}

/// OpenMetrics text as text of version 0.0.4: a counter is declared under the name of its samples,
/// and there are no units, no exemplars and no end.
pub(super) fn plain(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), rest) => help = rest,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                let help = help.take().unwrap_or_default();
                // Writing to a string can't fail.
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
                let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
            }
            (Some("#"), ..) => {}
            _ => {
                text.push_str(without_exemplar(line));
                text.push('\n');
            }
        }
    }
    text
}

/// A sample up to the end of its value.
fn without_exemplar(sample: &str) -> &str {
    // A name has no space; a brace behind one is an exemplar's.
    let name = sample.split(' ').next().unwrap_or_default();
    let value = if name.contains('{') { after_labels(sample) } else { 0 };
    let end = sample[value..].find(" # ").map_or(sample.len(), |at| value + at);
    &sample[..end]
}

/// Where a sample's labels end: at the first brace that stands outside of a label's value.
fn after_labels(sample: &str) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in sample.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'}' if !is_quoted => return at,
            _ => {}
        }
    }
    sample.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_has_neither_units_nor_exemplars() {
        let open_metrics = r##"# HELP a_seconds Time.
# TYPE a_seconds histogram
# UNIT a_seconds seconds
a_seconds_bucket{le="1.0",m="} # {\"x\\"} 3 # {trace_id="7"} 0.5 1.0
a_seconds_count 3 # {trace_id="7"} 0.5
# HELP b Things.
# TYPE b counter
b_total{m="} # {\"x\\"} 4
# EOF
"##;
        let expected = r##"# HELP a_seconds Time.
# TYPE a_seconds histogram
a_seconds_bucket{le="1.0",m="} # {\"x\\"} 3
a_seconds_count 3
# HELP b_total Things.
# TYPE b_total counter
b_total{m="} # {\"x\\"} 4
"##;
        assert_eq!(plain(open_metrics), expected);
    }

    #[test]
    fn who_reads_open_metrics_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert!(!wants_plain(prometheus));
        assert!(!wants_plain("*/*"));
        assert!(wants_plain("text/plain;version=0.0.4;q=1,*/*;q=0.1"));
    }
}
