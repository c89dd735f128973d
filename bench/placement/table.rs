//! What was planned beside what was measured.

use std::fmt::Write as _;

use serde_json::{Value, json};

use loadgen::numbers::{decimal, median};
use loadgen::report::compare::aligned;

use super::{Planned, Shape, Stage};

/// A shape, planned and measured.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub shape: Shape,
    /// What was expected by the nodes' probes alone, where that was asked.
    pub by_probes: Option<Planned>,
    /// What was expected before it was measured, when the first shape had been.
    pub planned: Planned,
    /// Its stages, as they turned out to be.
    pub stages: Vec<Stage>,
    /// Milliseconds of a token of one sequence, as its client saw it, of each round.
    pub token_ms: Vec<f64>,
    /// Tokens a second of as many at once as were planned, of each round.
    pub tokens_per_s: Vec<f64>,
    /// Cores that its processes had meanwhile, of each round.
    pub cores: Vec<f64>,
}

/// By how much what was planned is off.
fn off(planned: f64, measured: f64) -> String {
    format!("{:+.0} %", (planned / measured - 1.0) * 100.0)
}

/// The tables, and what the others gain over the first shape. `num_cores`: of this machine.
pub fn table(rows: &[Row], num_cores: usize) -> String {
    let mut text = shapes(rows);
    text += "\nmilliseconds of each stage, one sequence\n";
    text += &stages(rows);
    for row in rows {
        if let Some(planned) = &row.by_probes {
            let measured = median(&row.token_ms);
            let _ = writeln!(
                text,
                "\n{} by probes alone: {} ms a token, {} of what was measured",
                row.shape,
                decimal(planned.token_ms),
                off(planned.token_ms, measured),
            );
        }
    }
    let Some((first, others)) = rows.split_first() else { return text };
    for row in others {
        // Rounds alternate: what disturbs one shape in a round disturbs the other as well.
        let pairs = first.token_ms.iter().zip(&row.token_ms).map(|(first, own)| own / first);
        let _ = writeln!(
            text,
            "{} against {}: a token takes {:.2}x as long by plan, {:.2}x measured",
            row.shape,
            first.shape,
            row.planned.token_ms / first.planned.token_ms,
            median(&pairs.collect::<Vec<_>>()),
        );
    }
    for row in rows {
        let wanted: u32 = row.stages.iter().map(|stage| stage.kind.threads).sum();
        if wanted as usize >= num_cores && row.planned.concurrency > 1 {
            let _ = writeln!(
                text,
                "{}: {} sequences keep stages of {wanted} threads busy at once, and this machine \
                 has {num_cores} cores (its processes had {:.1} of them): its tokens a second are \
                 those of nodes that share cores",
                row.shape,
                row.planned.concurrency,
                median(&row.cores),
            );
        }
    }
    text
}

/// A line for each shape.
fn shapes(rows: &[Row]) -> String {
    let head = ["shape", "layers", "ms planned", "measured", "off", "at once", "tokens/s planned"];
    let head = head.iter().chain(&["measured", "off"]).map(|it| (*it).to_owned()).collect();
    let line = |Row { shape, planned, token_ms, tokens_per_s, .. }: &Row| {
        let (token_ms, tokens_per_s) = (median(token_ms), median(tokens_per_s));
        vec![
            shape.to_string(),
            planned.shape().to_string(),
            decimal(planned.token_ms),
            decimal(token_ms),
            off(planned.token_ms, token_ms),
            planned.concurrency.to_string(),
            decimal(planned.tokens_per_s),
            decimal(tokens_per_s),
            off(planned.tokens_per_s, tokens_per_s),
        ]
    };
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    aligned(&lines, 2)
}

/// A line for each stage of each.
fn stages(rows: &[Row]) -> String {
    let head = ["shape", "stage", "node", "layers", "planned", "measured", "off"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        for (number, (planned, stage)) in row.planned.stages.iter().zip(&row.stages).enumerate() {
            let measured = stage.measured_ms;
            lines.push(vec![
                row.shape.to_string(),
                number.to_string(),
                stage.kind.to_string(),
                planned.num_layers.to_string(),
                decimal(planned.compute_ms),
                measured.map_or("-".into(), decimal),
                measured.map_or("-".into(), |it| off(planned.compute_ms, it)),
            ]);
        }
    }
    aligned(&lines, 4)
}

/// The same as JSON.
pub fn report(rows: &[Row]) -> Value {
    let row = |it: &Row| {
        let stages = it.planned.stages.iter().zip(&it.stages).map(|(planned, stage)| {
            json!({
                "node": stage.kind.to_string(), "layers": planned.num_layers,
                "planned_ms": planned.compute_ms, "ms": stage.measured_ms,
            })
        });
        json!({
            "shape": it.shape.to_string(), "stages": stages.collect::<Vec<_>>(),
            "planned_token_ms_by_probes": it.by_probes.as_ref().map(|it| it.token_ms),
            "planned_token_ms": it.planned.token_ms, "token_ms": it.token_ms,
            "concurrency": it.planned.concurrency, "cores": it.cores,
            "planned_tokens_per_s": it.planned.tokens_per_s, "tokens_per_s": it.tokens_per_s,
        })
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::PlannedStage;
    use super::*;

    #[test]
    fn a_table_says_how_far_off_a_plan_was_and_what_a_shape_gains() {
        let stage = |num_layers: u32| PlannedStage {
            node: "a".into(),
            num_layers,
            compute_ms: f64::from(num_layers),
        };
        let planned = Planned {
            stages: vec![stage(2), stage(4)],
            token_ms: 12.0,
            concurrency: 8,
            tokens_per_s: 90.0,
        };
        let kind = "1x128".parse().unwrap();
        let measured = |measured_ms| Stage { node: "a".into(), kind, measured_ms };
        let even = Row {
            shape: "3/3".parse().unwrap(),
            by_probes: Some(Planned { token_ms: 5.0, ..planned.clone() }),
            planned: planned.clone(),
            stages: vec![measured(Some(2.5)), measured(None)],
            token_ms: vec![10.0, 10.0, 20.0],
            tokens_per_s: vec![100.0],
            cores: vec![1.9],
        };
        let planned = Planned { token_ms: 6.0, ..planned };
        // Half of it in each round.
        let token_ms = vec![5.0, 5.0, 10.0];
        let own =
            Row { shape: Shape::Stages(2), by_probes: None, planned, token_ms, ..even.clone() };
        let text = table(&[even.clone(), own], 2);
        for said in [
            "2/4",
            "+20 %",
            "-10 %",
            "-20 %",
            "3/3 by probes alone: 5.00 ms a token, -50 %",
            "2 against 3/3: a token takes 0.50x as long by plan, 0.50x measured",
            "8 sequences keep stages of 2 threads busy at once, and this machine has 2 cores",
        ] {
            assert!(text.contains(said), "{said} is missing:\n{text}");
        }
        assert!(!table(&[even], 8).contains("cores"));
    }
}
