
// A row's positions of a partition are cut into chains, which lanes take side by side; what they
// found is put together in the order of the chains.

fn most_of(row: u32) -> f32 {
    var most = LEAST;
    for (var chain = 0u; chain < {CHAINS}u; chain++) {
        most = max(most, sh_most[row * {CHAINS}u + chain]);
    }
    return most;
}

// Merges a partition into the states of rows: every lane of a workgroup does some of them.
fn merge_rows(lane: u32, num_rows: u32) {
    for (var row = lane; row < num_rows; row += {LANES}u) {
        let most = most_of(row);
        var weight = 0.0;
        for (var chain = 0u; chain < {CHAINS}u; chain++) {
            weight += sh_chain[row * {CHAINS}u + chain];
        }
        let state = sh_state[row].xy;
        let factors = merge_factors(state.x, most);
        sh_state[row] = vec4<f32>(merged(state, vec2<f32>(most, weight), factors), factors);
    }
}
