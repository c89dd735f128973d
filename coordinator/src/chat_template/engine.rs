//! minijinja, set up to render as Hugging Face's Jinja2 does.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, Output, State};

use super::{filters, generator, globals, methods, python, source};

/// The template's name in its environment.
pub(super) const NAME: &str = "chat_template";

/// Nested blocks, macros and calls.
const MAX_DEPTH: usize = 128;

/// An environment with this one template. Rendering takes at most `max_fuel` steps.
///
/// # Errors
/// When the template is malformed, or would silently be rendered otherwise than by Jinja2.
pub(super) fn compile(template: &str, max_fuel: u64) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(max_fuel));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        match value.as_str() {
            Some(text) => out.write_str(text)?,
            None => out.write_str(&python::str(state, value)?)?,
        }
        Ok(())
    });
    generator::add_to(&mut environment);
    filters::add_to(&mut environment);
    globals::add_to(&mut environment);
    let source =
        source::prepare(template).map_err(|problem| Error::new(ErrorKind::SyntaxError, problem))?;
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}
