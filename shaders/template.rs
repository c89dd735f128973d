//! Writes out loops in WGSL before it is compiled.
//!
//! naga gives drivers no hint to unroll, and an array indexed by a loop counter lands in memory
//! instead of registers, so the inner loops of the kernels are written out here. Directives are
//! lines of comments, so a kernel stays WGSL to an editor:
//!
//! ```wgsl
//! //! for j in 0..TN
//! total_{j} += acc_{j};
//! //! end
//! //! if SPLIT
//! workgroupBarrier();
//! //! else
//! //! end
//! ```
//!
//! A kernel declares what it is bound to where it is named, in the order of its bindings, with what
//! it holds:
//!
//! ```wgsl
//! //! read q vec4s  [num_tokens, num_heads, HEAD_VEC4S]
//! //! write sums f32  [num_tokens]
//! ```
//!
//! `vec4s` and `blocks` (of four words) are in images or in buffers, and so are four values of a
//! `cache`, which may be stored as halves, or `stored` ones, which are taken as they are: of these
//! the text gets functions `q_in(index)` and `write_q(index, value)`. Anything else is the type of
//! a buffer's elements.
//!
//! `{name}` stands for a loop variable or a constant that the launcher passes, `{name+1}` for one
//! more; bounds are numbers or such names, and `by N` after them steps over values; an `if` takes
//! its first branch unless the name stands for 0. Directives nest.

use crate::kernel::Access;
use crate::tensor::IMAGE_WIDTH;

/// Expands `source`. `constants` are the names that it may use beside its own loop variables.
///
/// # Panics
/// If `source` is malformed or names something that isn't there: kernels are part of the program.
pub fn expand(source: &str, constants: &[(&str, u32)]) -> String {
    let (text, bindings) = expand_bound(source, constants);
    assert!(bindings.is_empty(), "what a kernel declares is bound");
    text
}

/// A kernel whose text declares what it is bound to, and that.
pub(crate) fn expand_bound(source: &str, constants: &[(&str, u32)]) -> (String, Vec<Access>) {
    let lines: Vec<&str> = source.lines().collect();
    let mut names = constants.to_vec();
    let mut expanded = Expanded { text: String::with_capacity(source.len() * 4), bindings: vec![] };
    write_block(&lines, &mut names, &mut expanded);
    (expanded.text, expanded.bindings)
}

/// What was written so far.
struct Expanded {
    text: String,
    bindings: Vec<Access>,
}

/// Expands a kernel that takes values four at a time, from images or from buffers, and declares
/// what it is bound to: `IMAGES` and the function `texel` are there for it.
pub(crate) fn expand_images(
    source: &str,
    images: bool,
    constants: &[(&str, u32)],
) -> (String, Vec<Access>) {
    let constants =
        [constants, &[("IMAGES", images.into()), ("IMAGE_WIDTH", IMAGE_WIDTH as u32)]].concat();
    let helpers = if images { include_str!("image.wgsl") } else { "" };
    // Helpers come last, so that line numbers in errors are those of the kernel's own file.
    expand_bound(&[source, helpers].concat(), &constants)
}

fn write_block<'a>(lines: &[&'a str], names: &mut Vec<(&'a str, u32)>, expanded: &mut Expanded) {
    let mut next = 0;
    while let Some(line) = lines.get(next) {
        next += 1;
        let Some(directive) = directive(line) else {
            substitute(line, names, &mut expanded.text);
            continue;
        };
        if let [access @ ("read" | "write"), name, kind, ref about @ ..] = directive[..] {
            declare((access == "write", name, kind), &about.join(" "), names, expanded);
            continue;
        }
        let length = block_length(&lines[next..]);
        let block = &lines[next..next + length];
        next += length + 1;
        match directive[..] {
            ["for", variable, "in", bounds, ref rest @ ..] => {
                let (from, to) =
                    bounds.split_once("..").unwrap_or_else(|| panic!("{line:?} has no bounds"));
                let step = match rest {
                    [] => 1,
                    ["by", step] => lookup(step, names),
                    _ => panic!("{line:?} is no directive"),
                };
                for value in (lookup(from, names)..lookup(to, names)).step_by(step as usize) {
                    names.push((variable, value));
                    write_block(block, names, expanded);
                    names.pop();
                }
            }
            ["if", condition] => {
                let middle = else_position(block);
                let (then, other) = block.split_at(middle);
                if lookup(condition, names) != 0 {
                    write_block(then, names, expanded);
                } else {
                    write_block(other.get(1..).unwrap_or_default(), names, expanded);
                }
            }
            _ => panic!("{line:?} is no directive"),
        }
    }
}

/// Declares what a kernel reads, or writes, as `name`.
fn declare(
    (writes, name, kind): (bool, &str, &str),
    about: &str,
    names: &[(&str, u32)],
    expanded: &mut Expanded,
) {
    let is_cache = matches!(kind, "cache" | "stored");
    let is_tensor = is_cache || matches!(kind, "vec4s" | "blocks");
    let image = is_tensor && lookup("IMAGES", names) != 0;
    let halves = is_cache && lookup("KV_F16", names) != 0;
    let decoded = halves && kind == "cache";
    let (element, texel) = match kind {
        "blocks" => ("vec4<u32>", "rgba32uint"),
        _ if halves => ("vec2<u32>", "rg32uint"),
        _ if is_tensor => ("vec4<f32>", "rgba32float"),
        other => (other, ""),
    };
    let access = match (image, writes, texel) {
        (false, false, _) => Access::Read,
        (false, true, _) => Access::ReadWrite,
        (true, false, "rgba32uint") => Access::ReadWordsImage,
        (true, true, "rgba32uint") => Access::WriteWordsImage,
        (true, false, "rg32uint") => Access::ReadPairsImage,
        (true, true, "rg32uint") => Access::WritePairsImage,
        (true, false, _) => Access::ReadImage,
        (true, true, _) => Access::WriteImage,
    };
    let Expanded { text, bindings } = expanded;
    if !about.is_empty() {
        *text += &format!("// {about}\n");
    }
    let at = format!("@group(0) @binding({}) ", bindings.len());
    bindings.push(access);
    *text += &match (image, writes) {
        (true, false) => format!("{at}var {name}: texture_storage_2d<{texel}, read>;\n"),
        (true, true) => format!("{at}var {name}: texture_storage_2d<{texel}, write>;\n"),
        (false, false) => format!("{at}var<storage, read> {name}: array<{element}>;\n"),
        (false, true) => format!("{at}var<storage, read_write> {name}: array<{element}>;\n"),
    };
    if !is_tensor {
        return;
    }
    let value = if decoded { "vec4<f32>" } else { element };
    if writes {
        let stored = match (decoded, halves && image) {
            (false, false) => "value",
            (false, true) => "vec4<u32>(value, 0u, 0u)",
            (true, false) => "vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw))",
            (true, true) => "vec4<u32>(pack2x16float(value.xy), pack2x16float(value.zw), 0u, 0u)",
        };
        let store = match image {
            true => format!("textureStore({name}, texel(index), {stored});"),
            false => format!("{name}[index] = {stored};"),
        };
        *text += &format!("fn write_{name}(index: u32, value: {value}) {{\n    {store}\n}}\n");
    } else {
        let load = match image {
            true => format!("textureLoad({name}, texel(index))"),
            false => format!("{name}[index]"),
        };
        let load = match (decoded, halves && image) {
            (true, _) => format!("vec4<f32>(unpack2x16float({load}.x), unpack2x16float({load}.y))"),
            (false, true) => format!("{load}.xy"),
            (false, false) => load,
        };
        *text += &format!("fn {name}_in(index: u32) -> {value} {{\n    return {load};\n}}\n");
    }
}

fn directive(line: &str) -> Option<Vec<&str>> {
    Some(line.trim_start().strip_prefix("//!")?.split_whitespace().collect())
}

/// Number of lines before the `end` that closes the block which starts at `lines`.
fn block_length(lines: &[&str]) -> usize {
    find(lines, "end").expect("every directive has an end")
}

/// Where the `else` of a block stands, or its length.
fn else_position(block: &[&str]) -> usize {
    find(block, "else").unwrap_or(block.len())
}

/// The first line that is the directive `word`, outside of nested blocks.
fn find(lines: &[&str], word: &str) -> Option<usize> {
    let mut depth = 0;
    for (index, line) in lines.iter().enumerate() {
        match directive(line).as_deref() {
            Some([first]) if depth == 0 && *first == word => return Some(index),
            Some(["for" | "if", ..]) => depth += 1,
            Some(["end"]) => depth -= 1,
            _ => {}
        }
    }
    None
}

fn lookup(text: &str, names: &[(&str, u32)]) -> u32 {
    if let Some((name, more)) = text.split_once('+') {
        return lookup(name, names) + lookup(more, names);
    }
    match names.iter().rev().find(|(name, _)| *name == text) {
        Some((_, value)) => *value,
        None => text
            .parse()
            .unwrap_or_else(|_| panic!("{text:?} is neither a number nor a name in {names:?}")),
    }
}

/// Writes `line` with every `{name}` replaced. Braces of WGSL itself never close around a lone
/// name.
fn substitute(mut line: &str, names: &[(&str, u32)], expanded: &mut String) {
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_+".contains(c))
    };
    while let Some(open) = line.find('{') {
        let (before, rest) = line.split_at(open);
        expanded.push_str(before);
        line = match rest[1..].split_once('}') {
            Some((name, after)) if is_name(name) => {
                expanded.push_str(&lookup(name, names).to_string());
                after
            }
            _ => {
                expanded.push('{');
                &rest[1..]
            }
        };
    }
    expanded.push_str(line);
    expanded.push('\n');
}

#[cfg(test)]
mod tests {
    use super::{expand, expand_images};
    use crate::kernel::Access;

    #[test]
    fn names_are_replaced_and_braces_stay() {
        assert_eq!(expand("if (a < {N}u) { b{N}(); }", &[("N", 3)]), "if (a < 3u) { b3(); }\n");
    }

    #[test]
    fn loops_nest_and_may_be_empty() {
        let source = "//! for i in 0..N\n//! for j in i..2\na{i}{j};\n//! end\n//! end\n\
                      //! for i in 2..N\nb;\n//! end";
        assert_eq!(expand(source, &[("N", 2)]), "a00;\na01;\na11;\n");
    }

    #[test]
    fn loops_step_and_names_take_a_sum() {
        let source = "//! for i in 0..N by S\na{i}b{i+1};\n//! end";
        assert_eq!(expand(source, &[("N", 4), ("S", 2)]), "a0b1;\na2b3;\n");
    }

    #[test]
    fn branches_nest() {
        let source =
            "//! if A\n//! if B\nab;\n//! else\na;\n//! end\n//! else\nnone;\n//! end\nlast;";
        assert_eq!(expand(source, &[("A", 1), ("B", 1)]), "ab;\nlast;\n");
        assert_eq!(expand(source, &[("A", 1), ("B", 0)]), "a;\nlast;\n");
        assert_eq!(expand(source, &[("A", 0), ("B", 1)]), "none;\nlast;\n");
    }

    #[test]
    fn what_is_declared_is_bound_in_order() {
        let source = "//! read a u32  ids [n]\n//! read b vec4s\n//! write c cache\nend";
        let (text, bindings) = expand_images(source, false, &[("KV_F16", 1)]);
        assert_eq!(bindings, [Access::Read, Access::Read, Access::ReadWrite]);
        assert!(text.starts_with(
            "// ids [n]\n@group(0) @binding(0) var<storage, read> a: array<u32>;\n\
             @group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;\n\
             fn b_in(index: u32) -> vec4<f32> {\n    return b[index];\n}\n\
             @group(0) @binding(2) var<storage, read_write> c: array<vec2<u32>>;\n\
             fn write_c(index: u32, value: vec4<f32>) {\n"
        ));
        let (text, bindings) = expand_images(source, true, &[("KV_F16", 0)]);
        assert_eq!(bindings, [Access::Read, Access::ReadImage, Access::WriteImage]);
        assert!(text.contains("    return textureLoad(b, texel(index));\n"));
        assert!(text.contains("var c: texture_storage_2d<rgba32float, write>;\n"));
        let source = "//! read a stored\n//! write b stored";
        let (text, bindings) = expand_images(source, true, &[("KV_F16", 1)]);
        assert_eq!(bindings, [Access::ReadPairsImage, Access::WritePairsImage]);
        assert!(text.contains("return textureLoad(a, texel(index)).xy;"));
        assert!(text.contains("textureStore(b, texel(index), vec4<u32>(value, 0u, 0u));"));
        let (text, _) = expand_images(source, false, &[("KV_F16", 0)]);
        assert!(text.contains("fn write_b(index: u32, value: vec4<f32>) {\n    b[index] = value;"));
    }

    #[test]
    #[should_panic(expected = "neither a number nor a name")]
    fn an_unknown_name_is_a_fault() {
        expand("{M}", &[("N", 2)]);
    }

    #[test]
    #[should_panic(expected = "has an end")]
    fn an_open_block_is_a_fault() {
        expand("//! if N\na;", &[("N", 2)]);
    }
}
