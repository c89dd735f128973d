//! What invariance costs, for people and for machines.

use serde_json::{Value, json};

use super::{Options, Pair, price};
use crate::engine::kernels::matmul::format_name;
use crate::numbers::{median, time};

/// Kernel by kernel, then phase by phase.
pub fn table(adapter: &str, options: &Options, pairs: &[Pair]) -> String {
    let mut text = format!(
        "{adapter}\n  kernels of {}, ours against a rival that adds in any order\n\n\
         {:<32} {:>10} {:>10} {:>6}  {:<10} rival's layout\n",
        options.model.name, "kernel", "ours", "rival", "ratio", "layout",
    );
    for pair in pairs {
        let [ours, rival] = &pair.seconds;
        text += &format!(
            "{:<32} {:>10} {:>10} {:>6.3}  {:<10} {}\n",
            pair.what,
            time(median(ours) * 1e3),
            time(median(rival) * 1e3),
            pair.ratio(),
            pair.layouts[0],
            pair.layouts[1],
        );
    }
    text += "\nthe price of invariance: our time above the rival's, all kernels of a step\n";
    for &format in &options.formats {
        for phase in options.phases() {
            let [least, middle, most] = price(pairs, format, phase).map(|price| 100.0 * price);
            text += &format!(
                "{:<6} {:<15} {middle:>6.1} %  ({least:.1} … {most:.1})\n",
                format_name(format),
                phase.name(),
            );
        }
    }
    text
}

/// The same.
pub fn json(adapter: &str, options: &Options, pairs: &[Pair]) -> Value {
    let kernels: Vec<_> = pairs
        .iter()
        .map(|pair| {
            json!({
                "kernel": pair.what,
                "format": pair.format.map(format_name),
                "layout": pair.layouts[0],
                "rival_layout": pair.layouts[1],
                "seconds": pair.seconds[0],
                "rival_seconds": pair.seconds[1],
                "median_ratio": pair.ratio(),
            })
        })
        .collect();
    let prices: Vec<_> = options
        .formats
        .iter()
        .flat_map(|&format| options.phases().into_iter().map(move |phase| (format, phase)))
        .map(|(format, phase)| {
            let [least, middle, most] = price(pairs, format, phase);
            json!({
                "format": format_name(format),
                "phase": phase.name(),
                "median_price": middle, "least_price": least, "most_price": most,
            })
        })
        .collect();
    json!({
        "adapter": adapter,
        "model": options.model.name,
        "kernels": kernels,
        "prices": prices,
    })
}
