//! JSON that was read once, and of which nothing is kept.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Every text and number of it is one, and nothing is nested too deep: `IgnoredAny` doesn't look.
pub(super) struct Walked;

impl<'de> Deserialize<'de> for Walked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Walked {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        while fields.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_walked_through_is_what_can_be_read() {
        for json in [
            r#"{"a": [1, -2, 3.5, "x\u00e9", null, true], "b": {}}"#,
            r#"["\ud83d\ude00"]"#,
            "[] []",
            "[1e999]",
            r#"["\ud800"]"#,
            r#"{"\udc00": 1}"#,
            "[01]",
            "[\"\u{1}\"]",
            &"[".repeat(1000),
            &("[".repeat(200) + &"]".repeat(200)),
        ] {
            let is_value = serde_json::from_str::<serde_json::Value>(json).is_ok();
            assert_eq!(serde_json::from_str::<Walked>(json).is_ok(), is_value, "{json}");
        }
    }
}
