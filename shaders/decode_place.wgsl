
// Where a block of a tile's first row is, from the tile on. Rows follow at a distance of
// SIDE_BY_SIDE blocks.
fn block_at(block: u32) -> u32 {
//! if PAIRS
    return block / 2u * 2u * {TILE}u + block % 2u;
//! else
    return block * {TILE}u;
//! end
}
