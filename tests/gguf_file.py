"""Writes a GGUF file of a Hugging Face directory, as llama.cpp's converter lays it out: keys and
names of tensors are those of the gguf package. Beside it goes a directory with the values that the
file holds after rounding, in f32.

  python gguf_file.py DIRECTORY OUT.gguf [--type Q8_0] [--parts 3] [--values DIRECTORY]
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

ARCHITECTURES = {
    "GlmForCausalLM": gguf.MODEL_ARCH.CHATGLM,
    "Glm4ForCausalLM": gguf.MODEL_ARCH.GLM4,
    "Glm4MoeForCausalLM": gguf.MODEL_ARCH.GLM4_MOE,
    "Glm4MoeLiteForCausalLM": gguf.MODEL_ARCH.DEEPSEEK2,
    "GlmMoeDsaForCausalLM": gguf.MODEL_ARCH.GLM_DSA,
}


def read_tensors(path):
    """Every tensor of a safetensors file, as f32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, about in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in about["data_offsets"])
        if about["dtype"] == "BF16":
            values = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
            values = values.view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], np.float32)
        tensors[name] = values.reshape(about["shape"])
    return tensors


def write_tensors(path, tensors):
    """A safetensors file of f32."""
    header, offset = {}, 0
    for name, values in tensors.items():
        end = offset + 4 * values.size
        shape, offsets = list(values.shape), [offset, end]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(values.astype(np.float32).tobytes() for values in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def rounded(values, kind):
    """What is stored of a tensor, and what it says."""
    # One dimension, or rows that are no whole blocks, stay floats.
    if values.ndim == 1:
        kind = gguf.GGMLQuantizationType.F32
    elif values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    if kind == gguf.GGMLQuantizationType.IQ4_NL:
        # The package reads it, but doesn't write it.
        stored = named_levels(values)
    else:
        stored = gguf.quants.quantize(values, kind)
    return stored, kind, gguf.quants.dequantize(stored, kind).reshape(values.shape)


def named_levels(values):
    """Blocks of IQ4_NL: of 32 values the largest is the first or the last level, or near it."""
    levels = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)
    blocks = values.reshape(-1, 32).astype(np.float32)
    needed = np.maximum(blocks / levels[0], blocks / levels[-1]).max(axis=1, keepdims=True)
    scales = needed.astype(np.float16)
    away = blocks / np.where(scales == 0, 1, scales).astype(np.float32)
    codes = np.abs(away[:, :, None] - levels).argmin(axis=2).astype(np.uint8)
    packed = codes[:, :16] | codes[:, 16:] << 4
    rows = np.concatenate([scales.view(np.uint8), packed], axis=1)
    return rows.reshape(*values.shape[:-1], -1)


class File:
    def __init__(self, arguments):
        self.config = json.loads((arguments.directory / "config.json").read_text())
        self.architecture = ARCHITECTURES[self.config["architectures"][0]]
        self.num_layers = self.config["num_hidden_layers"]
        self.num_ahead = self.config.get("num_nextn_predict_layers", 0)
        if gguf.MODEL_TENSOR.NEXTN_EH_PROJ not in gguf.MODEL_TENSORS[self.architecture]:
            self.num_ahead = 0
        self.names = gguf.get_tensor_name_map(
            self.architecture, self.num_layers + self.num_ahead
        )
        self.kind = gguf.GGMLQuantizationType[arguments.type]
        self.values = {}
        self.tensors = read_tensors(arguments.directory / "model.safetensors")
        num_stored = sum(1 for _ in self.stored_tensors())
        self.writer = gguf.GGUFWriter(
            arguments.out,
            gguf.MODEL_ARCH_NAMES[self.architecture],
            split_max_tensors=-(-num_stored // arguments.parts) if arguments.parts > 1 else 0,
        )
        self.keys()
        self.tokenizer(arguments.directory)
        for name, part, values in self.stored_tensors():
            is_exact = name.endswith(("mlp.gate.weight", "indexer.weights_proj.weight"))
            kind = gguf.GGMLQuantizationType.F32 if is_exact else self.kind
            stored, kind, values = rounded(values, kind)
            self.keep(name, part, values)
            self.writer.add_tensor(self.name(name), stored, raw_dtype=kind)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        if arguments.values:
            arguments.values.mkdir()
            write_tensors(arguments.values / "model.safetensors", self.values)
            config = {**self.config, "torch_dtype": "float32"}
            (arguments.values / "config.json").write_text(json.dumps(config))

    def name(self, name):
        # As the converter does.
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        found = self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise SystemExit(f"the gguf package has no name for {name}")
        return found

    def stored_tensors(self):
        """Tensors as they are stored: what each is called, which part of what, its values."""
        heads = self.config["num_attention_heads"]
        for name, values in self.tensors.items():
            layer = name.split(".")[2] if name.startswith("model.layers.") else "0"
            if int(layer) >= self.num_layers + self.num_ahead:
                continue
            if ".mlp.experts." in name:
                # All of a kind in one, when the first comes.
                before, rest = name.split(".mlp.experts.")
                expert, kind = rest.split(".")[:2]
                if expert == "0":
                    each = [
                        self.tensors[f"{before}.mlp.experts.{number}.{kind}.weight"]
                        for number in range(self.config["n_routed_experts"])
                    ]
                    yield f"{before}.mlp.experts.{kind}.weight", "experts", np.stack(each)
            elif name.endswith("kv_b_proj.weight"):
                nope = self.config["qk_nope_head_dim"]
                both = values.reshape(heads, -1, values.shape[-1])
                keys = np.ascontiguousarray(both[:, :nope].transpose(0, 2, 1))
                values = np.ascontiguousarray(both[:, nope:])
                yield name.replace("kv_b_proj", "k_b_proj"), "keys", keys
                yield name.replace("kv_b_proj", "v_b_proj"), "values", values
            else:
                yield name, None, values

    def keep(self, name, part, values):
        """Puts values back where Hugging Face has them."""
        if part is None:
            self.values[name] = values
        elif part == "experts":
            before, kind, _ = name.rsplit(".", 2)
            for expert, of_it in enumerate(values):
                self.values[f"{before}.{expert}.{kind}.weight"] = of_it
        elif part == "keys":
            self.latent_keys = values.transpose(0, 2, 1)
        else:
            both = np.concatenate([self.latent_keys, values], axis=1)
            name = name.replace("v_b_proj", "kv_b_proj")
            self.values[name] = np.ascontiguousarray(both.reshape(-1, both.shape[-1]))

    def keys(self):
        config, writer = self.config, self.writer
        rope = config.get("rope_parameters") or config
        is_latent = "kv_lora_rank" in config
        writer.add_block_count(self.num_layers + self.num_ahead)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(1 if is_latent else config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(rope["rope_theta"])
        if is_latent:
            rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
            writer.add_vocab_size(config["vocab_size"])
            writer.add_q_lora_rank(config["q_lora_rank"])
            writer.add_kv_lora_rank(rank)
            writer.add_key_length(rank + rotated)
            writer.add_value_length(rank)
            writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
            writer.add_value_length_mla(config["v_head_dim"])
            writer.add_rope_dimension_count(rotated)
        else:
            head_dim = config["head_dim"]
            if self.architecture != gguf.MODEL_ARCH.CHATGLM:
                writer.add_key_length(head_dim)
                writer.add_value_length(head_dim)
            writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
        if "n_routed_experts" in config:
            writer.add_expert_count(config["n_routed_experts"])
            writer.add_expert_used_count(config["num_experts_per_tok"])
            writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
            writer.add_expert_shared_count(config["n_shared_experts"])
            writer.add_leading_dense_block_count(config["first_k_dense_replace"])
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
            writer.add_expert_weights_scale(config["routed_scaling_factor"])
            writer.add_expert_weights_norm(config["norm_topk_prob"])
            writer.add_expert_group_count(config["n_group"])
            writer.add_expert_group_used_count(config["topk_group"])
        if self.num_ahead:
            writer.add_nextn_predict_layers(self.num_ahead)
        if "index_topk" in config:
            writer.add_indexer_head_count(config["index_n_heads"])
            writer.add_indexer_key_length(config["index_head_dim"])
            writer.add_indexer_top_k(config["index_topk"])
        if "indexer_types" in config:
            # Newer than the package.
            is_full = [kind == "full" for kind in config["indexer_types"]]
            arch = gguf.MODEL_ARCH_NAMES[self.architecture]
            writer.add_array(f"{arch}.attention.indexer.types", is_full)

    def tokenizer(self, directory):
        if not (directory / "tokenizer.json").exists():
            return
        tokenizer = json.loads((directory / "tokenizer.json").read_text())
        about = json.loads((directory / "tokenizer_config.json").read_text())
        texts = {number: text for text, number in tokenizer["model"]["vocab"].items()}
        kinds = {number: gguf.TokenType.NORMAL for number in texts}
        for token in tokenizer["added_tokens"]:
            texts[token["id"]] = token["content"]
            is_special = token["special"]
            kind = gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED
            kinds[token["id"]] = kind
        for number in range(self.config["vocab_size"]):
            texts.setdefault(number, f"[PAD{number}]")
            kinds.setdefault(number, gguf.TokenType.UNUSED)
        writer = self.writer
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("glm4")
        writer.add_token_list([texts[number] for number in sorted(texts)])
        writer.add_token_types([kinds[number] for number in sorted(kinds)])
        merges = tokenizer["model"]["merges"]
        writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
        by_text = {text: number for number, text in texts.items()}
        writer.add_eos_token_id(by_text["<|endoftext|>"])
        writer.add_eot_token_id(by_text["<|user|>"])
        writer.add_pad_token_id(by_text["<|endoftext|>"])
        writer.add_add_bos_token(False)
        writer.add_chat_template(about["chat_template"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="BF16", help="of matrices, as ggml calls it")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--values", type=Path, help="where what it holds goes, in f32")
    File(parser.parse_args())


main()
