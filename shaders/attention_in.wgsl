// What attention reads and writes, and how.

struct Params {
    num_tokens: u32,
    tables_at: u32,       // in inputs
    num_heads: u32,
    num_kv_heads: u32,
    scale: f32,
    first_token: u32,
    num_partitions: u32,  // side by side: room for each token's; 0: a workgroup takes them all
}

var<immediate> params: Params;
//! read inputs u32  ..., positions, table_starts, ..., tables
//! read q vec4s  [num_tokens, num_heads, HEAD_VEC4S]
//! read keys cache  [num_blocks, num_kv_heads, HEAD_VEC4S, BLOCK]
//! read values cache  [num_blocks, num_kv_heads, BLOCK, HEAD_VEC4S]
//! write out vec4s  [num_tokens, num_heads, HEAD_VEC4S], or what partitions leave
