//! Snippets of templates with what Jinja2 itself makes of them: `tests/templates/make.py` wrote it.

use serde_json::Value;

use super::{engine, python};

/// A file like `corpus.json`, of templates whose text is others'.
const OTHER: &str = "AUTOGLM_TEMPLATES";

pub(super) fn read() -> Value {
    serde_json::from_str(include_str!("../../../tests/templates/corpus.json")).unwrap()
}

/// What isn't rendered, and a word of the sentence that says so.
const REFUSED: [(&str, &str); 20] = [
    ("{{ 'x' ~ 1e-7 }}", "`1e-7`"),
    ("{{ +1 }}", "`+`"),
    ("{{ text.split is callable }}", "`is callable`"),
    ("{% macro v() %}{{ varargs }}{% endmacro %}{{ v(1) }}", "`varargs`"),
    ("{% macro v() %}{{ kwargs }}{% endmacro %}{{ v(a=3) }}", "`kwargs`"),
    ("{{ '<a href=\"x\">' | escape }}", "`escape`"),
    ("{{ 'a<' | e }}", "`e`"),
    ("{{ '<' + ('a' | safe) }}", "`safe`"),
    ("{{ 'a b' | urlencode }}", "`urlencode`"),
    ("{{ '<b>x</b>' | striptags }}", "`striptags`"),
    ("{{ 1024 | filesizeformat }}", "`filesizeformat`"),
    ("{{ {'a': 1} | xmlattr }}", "`xmlattr`"),
    ("{{ text | wordwrap(8) }}", "`wordwrap`"),
    ("{{ table | attr('b') }}|", "`attr`"),
    ("{{ 'x' | pprint }}", "`pprint`"),
    ("{{ self is defined }}", "`self`"),
    ("{% if {'items': 3}.items %}yes{% endif %}", "`.items`"),
    ("{% set m = {'keys': 1} %}{% if m.keys is string %}no{% else %}yes{% endif %}", "`.keys`"),
    ("{{ namespace(a=1) }}", "namespace"),
    ("{{ '{!r}'.format('a') }}", "'!'"),
];

#[test]
fn snippets_are_rendered_as_jinja2_does_or_refused_by_name() {
    assert_eq!(render_all(&read()), REFUSED.len(), "what is rendered now needs no refusal");
    if let Ok(path) = std::env::var(OTHER) {
        let corpus = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(render_all(&corpus), 0);
    }
}

/// How many are refused; the others are as Jinja2 has them.
fn render_all(corpus: &Value) -> usize {
    let mut num_refused = 0;
    for case in corpus["cases"].as_array().unwrap() {
        let template = case["template"].as_str().unwrap();
        let mut context = corpus["context"].as_object().unwrap().clone();
        context.extend(case["told"].as_object().unwrap().clone());
        let context = python::value_of(&Value::Object(context));
        // Where Jinja2 has an error, more may be understood here.
        let Some(output) = case["output"].as_str() else { continue };
        let rendered = engine::compile(template, 10_000_000)
            .and_then(|environment| environment.get_template(engine::NAME)?.render(context));
        match rendered {
            Ok(text) => assert_eq!(text, output, "{} {template}", case["told"]),
            Err(error) => {
                let refused = REFUSED.iter().find(|(refused, _)| *refused == template);
                let Some((_, word)) = refused else { panic!("{template}: {error}") };
                assert!(error.to_string().contains(word), "{template}: {error}");
                num_refused += 1;
            }
        }
    }
    num_refused
}
