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
    /// With f16 and bf16 weights, and of attention, by cooperative matrices (tensor cores), with
    /// operands rounded to f16; with integer ones by packed dot products where those are an
    /// instruction; with others in f32.
    Cooperative,
    /// With integer weights by dot products of four bytes, with x rounded to eight bits
    /// ([`crate::quantize_rows`]); with others in f32.
    PackedDot,
}

impl Products {
    /// What a command line may name.
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
    /// adapter has an instruction for them; else plain ones. Not what a trial finds: replicas on
    /// equal adapters are to be of one device class.
    #[default]
    Auto,
    /// Refused where the adapter hasn't got what they take.
    Only(Products),
}

impl Wanted {
    /// What it may be on the adapter that `selector` chooses, as [`crate::gpu::Gpu::open`] does:
    /// what to try, the best first. Each but the last may turn out not to compute what it should.
    ///
    /// # Errors
    /// When there is no such adapter.
    pub fn on(self, selector: Option<&str>) -> Result<Vec<Products>, GpuError> {
        let Self::Only(products) = self else {
            let (adapter, _) = Adapters::find(false).select(selector)?;
            let packed = adapters::has_packed_dot(&adapter).then_some(Products::PackedDot);
            return Ok(packed.into_iter().chain([Products::Plain]).collect());
        };
        Ok(vec![products])
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
    fn auto_tries_what_there_are_instructions_for_and_is_plain_in_the_end() {
        for products in Products::ALL {
            let wanted: Wanted = products.to_string().parse().unwrap();
            assert_eq!(wanted, Wanted::Only(products));
            assert_eq!(wanted.on(Some("none of this name")).unwrap(), [products]);
        }
        assert_eq!("auto".parse(), Ok(Wanted::Auto));
        assert!("fast".parse::<Wanted>().unwrap_err().contains("packed-dot, auto"));
        let Some(gpu) = crate::testing::gpu() else { return };
        let found = Wanted::Auto.on(crate::testing::adapter().as_deref()).unwrap();
        // A software driver may know such products, and takes longer for them.
        assert!(!gpu.caps().is_cpu || found == [Products::Plain]);
    }
}
