//! The model that is planned for: its files, or its configuration alone.

use std::path::Path;

use anyhow::Result;
use checkpoint::{Checkpoint, DType, Outline};
use protocol::config::{Config, KvCacheDtype, Quantize};

use crate::model::{self, Model};

/// What is known of a model.
pub(super) enum Planned {
    Files(Checkpoint),
    Outline(Outline),
}

impl Planned {
    /// Opens what is at a path. `stored` is as what the weights would be stored that aren't there.
    pub(super) fn open(path: &Path, stored: Option<DType>, quantize: Quantize) -> Result<Self> {
        let quantize = model::quantize(quantize);
        if !Outline::is_all(path) {
            return Ok(Self::Files(Checkpoint::open(path)?.quantized(quantize)));
        }
        let outline = Outline::open(path)?.quantized(quantize);
        Ok(Self::Outline(match stored {
            Some(stored) => outline.stored_as(stored),
            None => outline,
        }))
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Files(files) => files.name(),
            Self::Outline(outline) => outline.name(),
        }
    }

    /// Tokens of a sequence that it was made for.
    pub(super) fn made_for(&self) -> u32 {
        let config = match self {
            Self::Files(files) => files.config(),
            Self::Outline(outline) => outline.config(),
        };
        config.max_position_embeddings as u32
    }

    /// What placement needs to know of it.
    pub(super) fn model(&self, config: &Config) -> Result<Model> {
        Ok(match self {
            Self::Files(files) => model::outline(files.config(), |part| files.cost(part), config)?,
            Self::Outline(outline) => {
                model::outline(outline.config(), |part| outline.cost(part), config)?
            }
        })
    }

    /// What is taken for granted of its weights, where they aren't there.
    pub(super) fn assumption(&self, config: &Config) -> Option<String> {
        let Self::Outline(outline) = self else { return None };
        let rounded = match config.model.quantize {
            Quantize::None => String::new(),
            quantize => format!(", rounded to {quantize} while they are loaded"),
        };
        Some(format!(
            "its weights, which aren't there, are stored as {}{rounded}",
            outline.stored()
        ))
    }
}

/// As what the cache would be stored.
pub(super) fn cache(config: &Config) -> &'static str {
    match config.model.kv_cache_dtype {
        KvCacheDtype::F16 => "f16",
        KvCacheDtype::Auto | KvCacheDtype::F32 => "f32",
    }
}
