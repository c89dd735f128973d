//! A template's text, rewritten where minijinja would read it otherwise than Jinja2, and refused
//! where no rewriting helps. What isn't named here is left as it is.

use super::lexer::{Kind, Tag, Token, pieces};
use super::{lexer::Piece, python};

/// Methods of Python's maps, which Jinja2 finds before an item of the same name.
const MAP_METHODS: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

/// What minijinja has no value for, and would render as nothing.
const UNKNOWN_NAMES: [&str; 4] = ["kwargs", "lipsum", "self", "varargs"];

/// Filters that are missing, or would give another text.
const REFUSED_FILTERS: [&str; 12] = [
    "attr",
    "e",
    "escape",
    "filesizeformat",
    "forceescape",
    "pprint",
    "random",
    "striptags",
    "urlencode",
    "urlize",
    "wordwrap",
    "xmlattr",
];

/// The text that minijinja renders as Jinja2 renders `template`.
///
/// # Errors
/// With the construct that can't be rendered so.
pub(super) fn prepare(template: &str) -> Result<String, String> {
    let pieces = pieces(template);
    let tags = || pieces.iter().filter_map(|piece| piece.tag());
    let namespaces: Vec<&str> = tags().filter_map(|tag| namespace(tag)).collect();
    let macros: Vec<&str> = tags().filter_map(with_defaults).collect();
    let mut out = String::with_capacity(template.len());
    for piece in &pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            // Jinja2 keeps the newline after it.
            Piece::Raw { open, close, rest } => {
                out.push_str(open);
                out.push_str(if *close == "%}" { "+%}" } else { close });
                out.push_str(rest);
            }
            Piece::Tag(tag) => {
                check(tag, &namespaces)?;
                out.push_str(tag.open);
                rewrite(tag, &macros, &mut out);
                out.push_str(tag.close);
            }
        }
    }
    Ok(out)
}

/// The name that a tag makes a namespace.
fn namespace<'a>(tag: &Tag<'a>) -> Option<&'a str> {
    match tag.tokens.get(..4)? {
        [set, name, equals, value] => {
            let is_one = set.text == "set" && equals.text == "=" && value.text == "namespace";
            is_one.then_some(name.text)
        }
        _ => None,
    }
}

/// The name of the macro that a tag begins, if its parameters have defaults.
fn with_defaults<'a>(tag: &Tag<'a>) -> Option<&'a str> {
    let has_defaults = tag.tokens.iter().any(|token| token.text == "=");
    (tag.statement() == Some("macro") && has_defaults).then(|| tag.tokens.get(1))?.map(|t| t.text)
}

fn check(tag: &Tag<'_>, namespaces: &[&str]) -> Result<(), String> {
    let tokens = &tag.tokens;
    let text_of = |at: Option<usize>| at.and_then(|at| tokens.get(at)).map_or("", |t| t.text);
    let is_added = tokens.iter().any(|token| token.text == "+");
    let is_joined = tokens.iter().any(|token| token.text == "~");
    for (at, token) in tokens.iter().enumerate() {
        let before = text_of(at.checked_sub(1));
        let after = text_of(Some(at + 1));
        let text = token.text;
        let problem = match token.kind {
            Kind::Name if before == "." && MAP_METHODS.contains(&text) && after != "(" => {
                let is_own = namespaces.contains(&text_of(at.checked_sub(2)));
                let other = format!("`.{text}` that isn't called is a method; write ['{text}']");
                (!is_own).then_some(other)
            }
            Kind::Name if UNKNOWN_NAMES.contains(&text) => {
                let is_own = [".", "**", "*"].contains(&before) || after == "=";
                (!is_own).then(|| format!("`{text}` is not known here"))
            }
            Kind::Name if before == "|" && REFUSED_FILTERS.contains(&text) => {
                Some(format!("the filter `{text}` is not known here"))
            }
            Kind::Name if before == "|" && text == "safe" => {
                is_added.then(|| "`safe` makes Jinja2 escape what is added to it".to_owned())
            }
            Kind::Name if before == "is" && text == "callable" => {
                let is_method = text_of(at.checked_sub(3)) == ".";
                is_method.then(|| "`is callable` of what a value has is not known here".to_owned())
            }
            Kind::Number if is_joined && text.contains(['.', 'e', 'E']) => {
                let plain: Option<f64> = text.replace('_', "").parse().ok();
                let is_same = |float: f64| python::float(float) == format!("{float:?}");
                let other = format!("`{text}` beside `~` reads otherwise in Python");
                (!plain.is_some_and(is_same)).then_some(other)
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(problem);
        }
    }
    Ok(())
}

fn rewrite(tag: &Tag<'_>, macros: &[&str], out: &mut String) {
    match tag.statement() {
        // For training only. It has a scope of its own.
        Some("generation") => out.push_str(" with "),
        Some("endgeneration") => out.push_str(" endwith "),
        Some("macro") => match defaults(tag) {
            Some(instead) => out.push_str(&instead),
            None => expressions(tag, &[], out),
        },
        _ => expressions(tag, macros, out),
    }
}

/// `{% macro m(a, b=a) %}` with what gives `b` its value in the body: minijinja computes the last
/// default first, and takes it for an argument that is given and undefined, too.
fn defaults(tag: &Tag<'_>) -> Option<String> {
    let [_, name, open, inner @ .., _] = &tag.tokens[..] else { return None };
    let (mut names, mut values, mut has_defaults) = (Vec::new(), String::new(), false);
    for parameter in split_at_commas(inner) {
        let [parameter, rest @ ..] = parameter else { continue };
        let parameter = parameter.text;
        let value = match rest {
            [_, first, .., last] | [_, first @ last] => {
                has_defaults = true;
                let default = &tag.source[first.start..last.end];
                format!("_given({parameter}) if {parameter} is defined else ({default})")
            }
            _ => format!("_given({parameter})"),
        };
        values.push_str(&format!("%}}{{% set {parameter} = {value} "));
        names.push(parameter);
    }
    let begin = format!(" macro {}{}{}) ", name.text, open.text, names.join(", "));
    has_defaults.then(|| begin + &values)
}

/// What is put where, so that macros with defaults are told what is given: `m(_given(x))`.
fn given(tag: &Tag<'_>, macros: &[&str]) -> Vec<(usize, &'static str)> {
    let tokens = &tag.tokens;
    let mut inserts = Vec::new();
    for (at, call) in tokens.windows(2).enumerate() {
        let is_own = at > 0 && tokens[at - 1].text == ".";
        if is_own || call[1].text != "(" || !macros.contains(&call[0].text) {
            continue;
        }
        let end = skip_brackets(tokens, at + 1);
        for argument in split_at_commas(tokens.get(at + 2..end - 1).unwrap_or_default()) {
            let value = match argument {
                [_, equals, value @ ..] if equals.text == "=" => value,
                value => value,
            };
            let ([first, .., last] | [first @ last]) = value else { continue };
            if !first.text.starts_with('*') {
                inserts.extend([(first.start, "_argument("), (last.end, ")")]);
            }
        }
    }
    inserts.sort_by_key(|(at, _)| *at);
    inserts
}

fn split_at_commas<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0;
    let mut parts = tokens.split(|token| {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        depth == 0 && token.text == ","
    });
    parts.by_ref().collect()
}

/// What Python computes with texts and truth values, and minijinja doesn't: `'%s' % x`, `-true`.
fn expressions(tag: &Tag<'_>, macros: &[&str], out: &mut String) {
    let tokens = &tag.tokens;
    let mut inserts = given(tag, macros).into_iter().peekable();
    let mut copy = |out: &mut String, mut from: usize, to: usize| {
        while let Some((at, insert)) = inserts.next_if(|(at, _)| *at <= to) {
            out.push_str(&tag.source[from..at]);
            out.push_str(insert);
            from = at;
        }
        out.push_str(&tag.source[from..to]);
    };
    let mut at = 0;
    // Up to where the source is written, and the ends of operands that wait for a bracket.
    let (mut written, mut open) = (0, Vec::new());
    while let Some(token) = tokens.get(at) {
        let before = at.checked_sub(1).map(|before| &tokens[before]);
        let is_format = token.text == "%" && before.is_some_and(|t| t.kind == Kind::Text);
        let plain = (token.kind == Kind::Text).then(|| plain_text(token.text)).flatten();
        let instead = match token.text {
            "%" if is_format => Some("| _percent("),
            "true" | "True" if before.is_some_and(|t| t.text == "-") => Some("1"),
            "false" | "False" if before.is_some_and(|t| t.text == "-") => Some("0"),
            _ => plain.as_deref(),
        };
        if let Some(instead) = instead {
            copy(out, written, token.start);
            out.push_str(instead);
            written = token.end;
        }
        if is_format {
            open.push(operand_end(tokens, at + 1));
        }
        at += 1;
        while open.last() == Some(&at) {
            let end = tokens[at - 1].end;
            copy(out, written, end);
            out.push(')');
            written = end;
            open.pop();
        }
    }
    copy(out, written, tag.source.len());
}

/// A text without the escapes that minijinja doesn't read: `\U0001F600` and an escaped newline.
fn plain_text(text: &str) -> Option<String> {
    if !text.contains("\\U") && !text.contains("\\\n") {
        return None;
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let code = escape.get(2..10).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let found = code.and_then(char::from_u32).filter(|_| escape.starts_with("\\U"));
        let length = match found {
            Some(c) => {
                out.push(c);
                10
            }
            None if escape.starts_with("\\\n") => 2,
            None => {
                let length = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&escape[..length]);
                length
            }
        };
        rest = &escape[length..];
    }
    Some(out + rest)
}

/// Where the operand that begins at a token ends: with what is called, taken or filtered of it.
fn operand_end(tokens: &[Token<'_>], start: usize) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let mut at = start;
    while ["-", "+"].contains(&text(at)) {
        at += 1;
    }
    at = skip_brackets(tokens, at);
    loop {
        at = match text(at) {
            "." | "|" => skip_brackets(tokens, at + 1),
            "(" | "[" => skip_brackets(tokens, at),
            _ => return at.min(tokens.len()),
        }
    }
}

/// Past one token, or all that it opens.
fn skip_brackets(tokens: &[Token<'_>], start: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth <= 0 {
            return at + 1;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::prepare;
    use proptest::prelude::*;

    const PARTS: [&str; 40] = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-",
        "+",
        " ",
        "\n",
        "macro",
        "m",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "=",
        ",",
        "'",
        "\"",
        "\\",
        "\\U",
        "0001F600",
        "é",
        "%",
        "'%s'",
        "1",
        "1e",
        ".",
        "~",
        "raw",
        "endraw",
        "generation",
        "true",
        "|",
        "safe",
        "set",
        "namespace",
    ];

    proptest! {
        #[test]
        fn no_template_panics(
            parts in proptest::collection::vec(proptest::sample::select(PARTS.to_vec()), 0..30),
        ) {
            let _ = super::super::engine::compile(&parts.concat(), 1000);
        }
    }

    #[test]
    fn what_reads_otherwise_is_rewritten_and_the_rest_left_alone() {
        for same in ["a {{ x }} {%- if y -%} {# {% raw %} #} {{ '{% raw %}' }}{%+ endif %}", "{{"] {
            assert_eq!(prepare(same).unwrap(), same);
        }
        let cases = [
            ("{% raw %}\n{{ x }}{% endraw %}", "{% raw +%}\n{{ x }}{% endraw %}"),
            ("{%- generation +%}a{% endgeneration %}", "{%- with +%}a{% endwith %}"),
            ("{{ '%s' % x.y[0] ~ 'z' }}", "{{ '%s' | _percent( x.y[0]) ~ 'z' }}"),
            (
                "{% macro m(a, b=a) -%}",
                "{% macro m(a, b) %}{% set a = _given(a) %}\
                 {% set b = _given(b) if b is defined else (a) -%}",
            ),
            ("{% macro m(a, b) %}{{ m(x) }}", "{% macro m(a, b) %}{{ m(x) }}"),
        ];
        for (template, expected) in cases {
            assert_eq!(prepare(template).unwrap(), expected);
        }
    }

    #[test]
    fn what_would_silently_be_another_prompt_is_refused_by_name() {
        for (template, name) in [
            ("{% if schema.items %}a{% endif %}", "`.items`"),
            ("{{ varargs }}", "`varargs`"),
            ("{{ 'x' ~ 1e-7 }}", "`1e-7`"),
        ] {
            assert!(prepare(template).unwrap_err().contains(name), "{template}");
        }
        for fine in ["{{ x.items() }}", "{% set n = namespace(items=1) %}{{ n.items }}"] {
            assert!(prepare(fine).is_ok(), "{fine}");
        }
    }
}
