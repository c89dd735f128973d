//! Which way of computing products an adapter is opened for.

use std::fmt;
use std::str::FromStr;

use crate::adapters::{self, Adapters};
use crate::error::GpuError;

/// How products with weights are computed. All but plain ones are a choice of whoever opens the
/// adapter, and a device class of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Products {
    /// In f32.
    #[default]
    Plain,
    /// By cooperative matrices (tensor cores), with operands rounded to f16: several times as fast
    /// for many rows.
    Cooperative,
    /// With integer weights by dot products of four bytes, with x rounded to eight bits
    /// ([`crate::quantize_rows`]); with others in f32.
    PackedDot,
}

impl Products {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Cooperative, Self::PackedDot];
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Cooperative => "cooperative-matrix",
            Self::PackedDot => "packed-dot",
        })
    }
}

impl FromStr for Products {
    type Err = String;

    /// As they are displayed.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|products| products.to_string() == text).ok_or_else(|| {
            format!(
                "{text:?} is none of {}",
                Self::ALL.map(|products| products.to_string()).join(", ")
            )
        })
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    /// What is fastest where it was measured: packed dot products of integer weights, where the
    /// adapter has an instruction for them; else plain ones.
    #[default]
    Auto,
    /// These.
    Only(Products),
}

impl Wanted {
    /// What it is on the adapter that `selector` chooses, as [`crate::gpu::Gpu::open`] does.
    ///
    /// # Errors
    /// When there is no such adapter.
    pub fn on(self, selector: Option<&str>) -> Result<Products, GpuError> {
        match self {
            Self::Only(products) => Ok(products),
            Self::Auto => {
                let (adapter, _) = Adapters::find(false).select(selector)?;
                let packs = adapters::has_packed_dot(&adapter);
                Ok(if packs { Products::PackedDot } else { Products::Plain })
            }
        }
    }

    /// What takes its place where the adapter doesn't compute what it should: nothing, if it was
    /// asked for by name.
    pub fn instead_of(self, products: Products) -> Option<Products> {
        (self == Self::Auto && products != Products::Plain).then_some(Products::Plain)
    }
}

impl From<Products> for Wanted {
    fn from(products: Products) -> Self {
        Self::Only(products)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(products) => products.fmt(f),
        }
    }
}

impl FromStr for Wanted {
    type Err = String;

    /// As they are displayed.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Only).map_err(|error: String| format!("{error}, auto"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_packed_where_that_is_an_instruction_and_plain_where_it_fails() {
        for products in Products::ALL {
            let wanted: Wanted = products.to_string().parse().unwrap();
            assert_eq!(wanted, Wanted::Only(products));
            assert_eq!(wanted.on(Some("none of this name")).unwrap(), products);
            assert_eq!(wanted.instead_of(products), None);
        }
        assert_eq!("auto".parse(), Ok(Wanted::Auto));
        assert!("fast".parse::<Wanted>().unwrap_err().contains("packed-dot, auto"));
        assert_eq!(Wanted::Auto.instead_of(Products::PackedDot), Some(Products::Plain));
        assert_eq!(Wanted::Auto.instead_of(Products::Plain), None);
        let Some(gpu) = crate::testing::gpu() else { return };
        let found = Wanted::Auto.on(crate::testing::adapter().as_deref()).unwrap();
        // A software driver may know such products, and takes longer for them.
        assert!(!gpu.caps().is_cpu || found == Products::Plain);
    }
}
