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
//! `{name}` stands for a loop variable or a constant that the launcher passes, `{name+1}` for one
//! more; bounds are numbers or such names, and `by N` after them steps over values; an `if` takes
//! its first branch unless the name stands for 0. Directives nest.

use crate::tensor::IMAGE_WIDTH;

/// Expands `source`. `constants` are the names that it may use beside its own loop variables.
///
/// # Panics
/// If `source` is malformed or names something that isn't there: kernels are part of the program.
pub fn expand(source: &str, constants: &[(&str, u32)]) -> String {
    let lines: Vec<&str> = source.lines().collect();
    let mut names = constants.to_vec();
    let mut expanded = String::with_capacity(source.len() * 4);
    write_block(&lines, &mut names, &mut expanded);
    expanded
}

/// Expands a kernel that takes values four at a time, from images or from buffers: `IMAGES` and the
/// function `texel` are there for it.
pub fn expand_vec4s(source: &str, images: bool, constants: &[(&str, u32)]) -> String {
    let constants =
        [constants, &[("IMAGES", images.into()), ("IMAGE_WIDTH", IMAGE_WIDTH as u32)]].concat();
    let helpers = if images { include_str!("image.wgsl") } else { "" };
    // Helpers come last, so that line numbers in errors are those of the kernel's own file.
    expand(&[source, helpers].concat(), &constants)
}

fn write_block<'a>(lines: &[&'a str], names: &mut Vec<(&'a str, u32)>, expanded: &mut String) {
    let mut next = 0;
    while let Some(line) = lines.get(next) {
        next += 1;
        let Some(directive) = directive(line) else {
            substitute(line, names, expanded);
            continue;
        };
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
    use super::expand;

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
