//! What a GGUF file's keys say of layers that are not all alike: experts, latent attention, chosen
//! positions.

use crate::architecture::{Architecture, Layout};
use crate::config::{
    MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH, Refused,
};
use crate::gguf_model::Keys;
use crate::spec::{Attention, Index, LayerSpec, Mla, Mlp, Moe};

/// `LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID` of llama.cpp.
const SIGMOID: u64 = 2;

/// Files of GLM-4.7-Flash that don't say how scores are made are told by it from those of DeepSeek.
const FLASH_VOCABULARY: usize = 154_880;

/// Files of GLM-5.2 and later that don't say which layers share a choice are told from those of
/// GLM-5 and 5.1, of which none does, by the context that they were made for.
const SHARING_CONTEXT: usize = 1 << 20;

/// The layers of a file whose dense ones are like `dense`: all but those that guess several tokens
/// ahead, which are counted too and come last.
pub(crate) fn layers(
    keys: &Keys<'_>,
    layout: &Layout,
    (dense, vocab_size): (LayerSpec, usize),
    bytes: &[u8],
) -> Result<Vec<LayerSpec>, Refused> {
    let architecture = layout.architecture;
    let num_blocks = keys.required("block_count", MAX_LAYERS)?;
    let num_ahead = keys.integer("nextn_predict_layers")?.unwrap_or(0);
    let num_layers =
        usize::try_from(num_ahead).ok().and_then(|ahead| num_blocks.checked_sub(ahead));
    let Some(num_layers) = num_layers.filter(|num_layers| *num_layers > 0) else {
        let problem =
            format!("is {num_ahead}, there are {num_blocks} blocks, of which it is a part");
        return Err(Refused::new(&keys.full("nextn_predict_layers"), problem));
    };
    let mut layers = vec![dense; num_layers];
    if architecture.has_experts() {
        let moe = moe(keys, layout, vocab_size)?;
        let num_dense = keys.integer("leading_dense_block_count")?.unwrap_or(0);
        let num_dense = usize::try_from(num_dense).unwrap_or(usize::MAX);
        layers.iter_mut().skip(num_dense).for_each(|layer| layer.mlp = Mlp::Moe(moe));
    }
    if architecture == Architecture::GlmMoeDsa {
        for (layer, shared) in layers.iter_mut().zip(shared_layers(keys, num_layers, bytes)?) {
            if let Attention::Mla(Mla { index: Some(index), .. }) = &mut layer.attention {
                index.shared = shared;
            }
        }
    }
    Ok(layers)
}

/// Which layers take the choice of the one before: those that the file names, or as llama.cpp
/// takes those that don't say it.
fn shared_layers(keys: &Keys<'_>, num_layers: usize, bytes: &[u8]) -> Result<Vec<bool>, Refused> {
    let key = "attention.indexer.types";
    let shared: Vec<bool> = match keys.flags(key, bytes)? {
        Some(choose) => choose.iter().map(|chooses| !chooses).collect(),
        None if keys.required("context_length", MAX_POSITIONS)? < SHARING_CONTEXT => {
            vec![false; num_layers]
        }
        None => (0..num_layers).map(|at| at >= 2 && !(at - 2).is_multiple_of(4)).collect(),
    };
    if shared.len() < num_layers || shared[0] {
        let problem = format!(
            "must be true or false for each of {num_layers} layers, and true for the first"
        );
        return Err(Refused::new(&keys.full(key), problem));
    }
    Ok(shared)
}

fn moe(keys: &Keys<'_>, layout: &Layout, vocab_size: usize) -> Result<Moe, Refused> {
    // What llama.cpp takes where nothing is said.
    let is_deepseek = layout.source == "deepseek2";
    let is_softmax = is_deepseek && vocab_size != FLASH_VOCABULARY;
    let function = keys.integer("expert_gating_func")?.filter(|function| *function != 0);
    if function.is_some_and(|function| function != SIGMOID) || function.is_none() && is_softmax {
        let said = function.map_or("missing".to_owned(), |function| function.to_string());
        let problem = format!("is {said}, supported is {SIGMOID}, the sigmoid");
        return Err(Refused::new(&keys.full("expert_gating_func"), problem));
    }
    let width = keys.required("expert_feed_forward_length", MAX_WIDTH)?;
    let num_shared = match keys.integer("expert_shared_count")? {
        Some(0) => 0,
        _ => keys.optional("expert_shared_count", MAX_EXPERTS)?.unwrap_or(0),
    };
    let group = |key| Ok::<_, Refused>(keys.optional(key, MAX_EXPERTS)?.unwrap_or(1));
    Ok(Moe {
        num_experts: keys.required("expert_count", MAX_EXPERTS)?,
        top_k: keys.required("expert_used_count", MAX_EXPERTS)?,
        width,
        shared_width: num_shared * width,
        num_groups: group("expert_group_count")?,
        top_groups: group("expert_group_used_count")?,
        normalized: keys.flag("expert_weights_norm")?.unwrap_or(false),
        // llama.cpp takes 0 for none.
        scale: keys.float("expert_weights_scale")?.filter(|scale| *scale != 0.0).unwrap_or(1.0),
    })
}

/// Latent attention: keys and values are counted as one head of the latent row.
pub(crate) fn mla(keys: &Keys<'_>, architecture: Architecture) -> Result<Attention, Refused> {
    let rope_dim = keys.required("rope.dimension_count", MAX_HEAD_DIM)?;
    let head_dim = keys.required("attention.key_length_mla", MAX_HEAD_DIM)?;
    let Some(nope_dim) = head_dim.checked_sub(rope_dim).filter(|nope_dim| *nope_dim > 0) else {
        let problem = format!("is {head_dim}, of which {rope_dim} dimensions rotate");
        return Err(Refused::new(&keys.full("attention.key_length_mla"), problem));
    };
    let index = match architecture {
        Architecture::GlmMoeDsa => Some(Index {
            num_heads: keys.required("attention.indexer.head_count", MAX_HEADS)?,
            head_dim: keys.required("attention.indexer.key_length", MAX_HEAD_DIM)?,
            top_k: keys.required("attention.indexer.top_k", MAX_POSITIONS)?,
            shared: false,
        }),
        _ => None,
    };
    Ok(Attention::Mla(Mla {
        num_heads: keys.required("attention.head_count", MAX_HEADS)?,
        q_lora_rank: keys.required("attention.q_lora_rank", MAX_WIDTH)?,
        kv_lora_rank: keys.required("attention.kv_lora_rank", MAX_WIDTH)?,
        nope_dim,
        rope_dim,
        value_dim: keys.required("attention.value_length_mla", MAX_HEAD_DIM)?,
        index,
    }))
}
