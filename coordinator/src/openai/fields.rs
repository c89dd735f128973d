//! The fields of a body, taken one by one: what is left over at the end is refused by name.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{ApiError, known};

/// What is left of a body: few enough to look through.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(String, Value)>);

impl Fields {
    /// The fields of a JSON object.
    ///
    /// # Errors
    /// When the body is anything else.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(body).map_err(|cause| {
            if cause.is_data() {
                return ApiError::malformed("the body must be a JSON object");
            }
            ApiError::malformed(format!("the body is not JSON: {cause}"))
        })
    }

    /// The fields of a value that is an object; another has none.
    pub(super) fn of(body: Value) -> Self {
        let Value::Object(fields) = body else { return Self::default() };
        Self(fields.into_iter().filter(|(_, value)| !value.is_null()).collect())
    }

    /// A field's value; `null` is the same as none.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(field, _)| field == name)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.0.push((name.to_owned(), value));
    }

    /// Whether a field has a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    pub(super) fn left(&self) -> impl Iterator<Item = &(String, Value)> {
        self.0.iter()
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// When it isn't.
    pub(crate) fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::invalid(name, format!("{name} is missing")))
    }

    /// A string.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn bool(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// A whole number from 0 on.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn u32(&mut self, name: &str) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        whole(&value).map(Some).ok_or_else(|| wrong(name, "a whole number from 0 on", &value))
    }

    /// A number between two others, both allowed.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn f32(&mut self, name: &str, min: f32, max: f32) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32);
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, &format!("a number from {min} to {max}"), &value)),
        }
    }

    /// Takes what is accepted only at the value that changes nothing.
    ///
    /// # Errors
    /// When it has another.
    pub(crate) fn only(&mut self, name: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.take(name) {
            None => Ok(()),
            Some(value) if harmless.iter().any(|it| is_same(it, &value)) => Ok(()),
            Some(_) => Err(unsupported(name)),
        }
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// When something is.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) if known::is_known(&name) => Err(unsupported(&name)),
            Some((name, _)) => {
                let message = format!("unknown field {name}; remove it");
                Err(ApiError::invalid(name, message).code("unknown_parameter"))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(body: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut object: M) -> Result<Fields, M::Error> {
                let mut fields = Fields::default();
                while let Some(name) = object.next_key::<String>()? {
                    // More than are known can't all be taken: the body is refused anyway.
                    if fields.0.len() > known::FIELDS.len() {
                        object.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let value = object.next_value()?;
                    // The last of one name counts.
                    fields.0.retain(|(before, _)| *before != name);
                    // A field without a value is none.
                    if value != Value::Null {
                        fields.0.push((name, value));
                    }
                }
                Ok(fields)
            }
        }

        body.deserialize_map(Object)
    }
}

/// A whole number that fits, also where it was written as a float.
pub(crate) fn whole(value: &Value) -> Option<u32> {
    let of_float = |value: f64| (value.fract() == 0.0).then_some(value);
    let number = value.as_u64().or_else(|| {
        let number = value.as_f64().and_then(of_float)?;
        (0.0..=f64::from(u32::MAX)).contains(&number).then_some(number as u64)
    });
    number.and_then(|number| u32::try_from(number).ok())
}

/// Whether two values say the same: 0 and 0.0 do.
fn is_same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// A field has a value of another type than it should.
pub(crate) fn wrong(name: &str, expected: &str, found: &Value) -> ApiError {
    let mut found = found.to_string();
    if found.len() > 40 {
        found = format!("{}…", found.chars().take(40).collect::<String>());
    }
    ApiError::invalid(name, format!("{name} must be {expected}, not {found}"))
}

fn unsupported(name: &str) -> ApiError {
    let message = format!("{name} is not supported by this server; remove it");
    ApiError::invalid(name, message).code("unsupported_parameter")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_left_over_is_refused_by_name() {
        assert_eq!(fields("{\"a\": null}").finish(), Ok(()));
        let error = fields("{\"tools\": [1]}").finish().unwrap_err();
        assert_eq!(
            (error.param.as_deref(), error.code),
            (Some("tools"), Some("unsupported_parameter"))
        );
        let error = fields("{\"wibble\": 1}").finish().unwrap_err();
        assert_eq!(error.code, Some("unknown_parameter"));
        // However many they are.
        let many: Vec<_> = (0..100_000).map(|number| format!("\"{number}\": 1")).collect();
        let fields = fields(&format!("{{{}}}", many.join(", ")));
        assert!(fields.0.len() <= known::FIELDS.len() + 1);
        assert_eq!(fields.finish().unwrap_err().code, Some("unknown_parameter"));
    }

    #[test]
    fn of_fields_with_one_name_the_last_counts() {
        let mut twice = fields("{\"a\": 1, \"b\": 2, \"a\": 3, \"b\": null}");
        assert_eq!((twice.take("a"), twice.take("b")), (Some(3.into()), None));
        twice.finish().unwrap();
    }

    #[test]
    fn a_wrong_type_names_the_field_and_what_would_be_right() {
        let error = fields("{\"top_p\": 3}").f32("top_p", 0.0, 1.0).unwrap_err();
        assert_eq!(error.message, "top_p must be a number from 0 to 1, not 3");
        assert!(fields("{\"n\": -1}").u32("n").is_err());
        assert!(fields("{\"n\": 1.5}").u32("n").is_err());
        assert!(Fields::parse(b"[1]").is_err());
        assert!(Fields::parse(b"{\"a\":").unwrap_err().message.contains("line 1"));
    }
}
