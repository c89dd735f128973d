//! Kernels of cooperative matrices for devices without them, in tests: the same text, but that
//! loads, products and stores are loops. Each lane of a subgroup has a row of a matrix of sums; an
//! operand is an array, where it begins there and how far its rows or columns are from each other.
//! What is loaded, multiplied and stored, from where and in which order, is the kernel's own.

use crate::kernel::KernelSource;
use crate::template::expand;

/// The same kernel, for a device without cooperative matrices; whatever has none stays as it is.
pub(crate) fn emulated(source: KernelSource) -> KernelSource {
    let Some((head, body)) = source.wgsl.split_once("enable wgpu_cooperative_matrix;\n") else {
        return source;
    };
    let side = if body.contains("coop_mat16x16") { 16 } else { 8 };
    let mut wgsl = body.to_owned();
    // Those that operands are in.
    let mut arrays: Vec<String> = Vec::new();
    while let Some(at) = wgsl.find("coopLoad") {
        let open = at + wgsl[at..].find('(').expect("a load has operands");
        let of = wgsl[at..open].to_owned();
        let (name, place, end) = operand(&wgsl, open + 1);
        let load = match of.ends_with("<f32, C>>") {
            true => format!("load_sum({place}, "),
            false => {
                let number = arrays.iter().position(|array| *array == name);
                let number = number.unwrap_or_else(|| {
                    arrays.push(name);
                    arrays.len() - 1
                });
                let by_rows = of.starts_with("coopLoadT");
                assert!(by_rows || of.ends_with("<f16, B>>"), "{of}: no other load is known");
                format!("Operand({number}u, {by_rows}, {place}, ")
            }
        };
        wgsl.replace_range(at..end, &load);
    }
    while let Some(at) = wgsl.find("coopStoreT(") {
        let comma = at + wgsl[at..].find(", ").expect("a store has operands");
        let (_, place, end) = operand(&wgsl, comma + 2);
        let value = wgsl[at + "coopStoreT(".len()..comma].to_owned();
        wgsl.replace_range(at..end, &format!("store_sum({value}, {place}, "));
    }
    let matrix = format!("coop_mat{side}x{side}<f32, C>");
    wgsl = wgsl.replace(&matrix, "Sums").replace("coopMultiplyAdd", "multiply_add");
    wgsl = wgsl.split_inclusive(';').map(added).collect();
    let some = if body.contains("num_tokens: u32") { "num_tokens" } else { "num_rows" };
    wgsl = wgsl.replace(
        ") {\n    let p = params;",
        &format!(
            ") {{\n    own_row = local % {side}u;\n    \
             side = min({side}u, params.{some} + {side}u);\n    let p = params;"
        ),
    );
    let is_known = !wgsl.contains("coop_mat") && !wgsl.contains("coopStore");
    assert!(is_known, "{}: no other operation is known", source.name);
    let load = |(number, array): (usize, &String)| {
        format!("        case {number}u: {{ return vec4<f32>({array}[at]); }}\n")
    };
    let loads: String = arrays.iter().enumerate().map(load).collect();
    let helpers = expand(include_str!("matmul_emulated.wgsl"), &[("SIDE", side)])
        .replace("        LOADS\n", &loads);
    let text = [head, &wgsl, &helpers].concat();
    KernelSource { wgsl: text, ..source }
}

/// An operand `&name[place], ` from `at` on, and where it ends.
fn operand(wgsl: &str, at: usize) -> (String, String, usize) {
    let start = at + wgsl[at..].find('&').expect("an operand is where something begins") + 1;
    let open = start + wgsl[start..].find('[').expect("of an array");
    let mut depth = 0;
    let close = wgsl[open..].find(|c| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        depth == 0
    });
    let close = open + close.expect("brackets are closed");
    let end = close + wgsl[close..].find(", ").expect("and the distance of its rows follows") + 2;
    (wgsl[start..open].to_owned(), wgsl[open + 1..close].to_owned(), end)
}

/// A statement that adds two matrices, with a function for that.
fn added(statement: &str) -> String {
    let sum = statement.split_once(" = total_").and_then(|(target, sum)| {
        let (first, second) = sum.split_once(" + ")?;
        (!first.contains(' ')).then_some((target, first, second.trim_end_matches(';')))
    });
    sum.map_or_else(
        || statement.to_owned(),
        |(target, first, second)| format!("{target} = add(total_{first}, {second});"),
    )
}
