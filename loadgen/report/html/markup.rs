//! Text as HTML, tables and figures.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::plot::Plot;

/// Characters of a name in a legend or a heading; the rest is in its tooltip.
const MAX_NAME_CHARS: usize = 60;

/// `text` with whatever means something in HTML, in text or in a quoted attribute, made harmless.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    let special =
        |c: char| matches!(c, '&' | '<' | '>' | '"' | '\'') || (c.is_control() && c != '\n');
    if !text.contains(special) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if special(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// A name that may be of any length, cut where it would burst a line.
pub(super) fn name(text: &str) -> String {
    match text.char_indices().nth(MAX_NAME_CHARS) {
        Some((end, _)) => {
            format!("<span title=\"{}\">{}…</span>", escape(text), escape(&text[..end]))
        }
        None => escape(text).into_owned(),
    }
}

/// What a cell of a table holds.
pub(super) enum Cell {
    /// Words, to the left.
    Text(String),
    /// A number, to the right.
    Number(String),
    /// HTML that is harmless already.
    Html(String),
}

impl Cell {
    fn is_number(&self) -> bool {
        matches!(self, Self::Number(_))
    }
}

/// A table of `rows` under `head`; its first column heads the rows.
pub(super) fn table(head: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut html = String::from("<div class=\"wide\"><table><thead><tr>");
    for (column, title) in head.iter().enumerate() {
        let numbers = rows.iter().any(|row| row.get(column).is_some_and(Cell::is_number));
        let class = if numbers { " class=\"number\"" } else { "" };
        let _ = write!(html, "<th scope=\"col\"{class}>{}</th>", escape(title));
    }
    html.push_str("</tr></thead><tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let (class, content) = match cell {
                Cell::Text(text) => ("", escape(text)),
                Cell::Number(text) => (" class=\"number\"", escape(text)),
                Cell::Html(html) => ("", Cow::Borrowed(html.as_str())),
            };
            let _ = match column {
                0 => write!(html, "<th scope=\"row\"{class}>{content}</th>"),
                _ => write!(html, "<td{class}>{content}</td>"),
            };
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// A list of terms and what they are; those without are left out.
pub(super) fn terms(terms: &[(&str, Option<String>)]) -> String {
    let mut html = String::from("<dl>");
    for (term, value) in terms {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(term), escape(value));
        }
    }
    html.push_str("</dl>\n");
    html
}

/// How much a note matters.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Weight {
    Good,
    Plain,
    Warning,
    Bad,
}

/// A box with a sentence and, below it, whatever belongs to it (HTML).
pub(super) fn note(weight: Weight, sentence: &str, below: &str) -> String {
    let (class, mark) = match weight {
        Weight::Good => ("good", "✓ "),
        Weight::Plain => ("plain", ""),
        Weight::Warning => ("warning", "⚠ "),
        Weight::Bad => ("bad", "✗ "),
    };
    format!("<div class=\"note {class}\"><p>{mark}{}</p>{below}</div>\n", escape(sentence))
}

/// Plots side by side where there is room.
pub(super) fn figures(plots: &[Plot]) -> String {
    let mut html = String::from("<div class=\"plots\">\n");
    for plot in plots {
        let _ = writeln!(
            html,
            "<figure class=\"plot\"><figcaption>{}</figcaption>\n{}{}</figure>",
            escape(&plot.title),
            plot.svg(),
            if plot.legend { legend(plot) } else { String::new() },
        );
    }
    html.push_str("</div>\n");
    html
}

/// What each line of a plot is.
pub(super) fn legend(plot: &Plot) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    let lines = plot.lines.iter().map(|line| (&line.name, &line.colour, line.dashed));
    for (title, colour, dashed) in lines {
        let class = if dashed { " class=\"dashed\"" } else { "" };
        let _ = write!(html, "<li style=\"--c:{colour}\"><i{class}></i>{}</li>", name(title));
    }
    html.push_str("</ul>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_means_something_passes() {
        let hostile = "<script>\"a\" & 'b'\u{0}</script>";
        let escaped = "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;\u{fffd}&lt;/script&gt;";
        assert_eq!(escape(hostile), escaped);
        assert!(matches!(escape("glm-4, 9 B"), Cow::Borrowed(_)));
        let long = name(&"<".repeat(100));
        assert!(long.starts_with("<span title=\"&lt;") && long.ends_with("&lt;…</span>"), "{long}");
    }
}
