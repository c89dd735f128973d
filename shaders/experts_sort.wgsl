// The pairs of each expert, in their order, and the parts that they are multiplied in.
//                                                                  one workgroup per expert
// First all experts count, then all of them sort.

struct Params {
    num_pairs: u32,
    num_experts: u32,
    sorted_at: u32,  // in routes
    counts_at: u32,  // in routes
    parts_at: u32,   // in routes
    num_parts: u32,
    rows_of_part: u32,
}

var<immediate> params: Params;
// chosen [num_pairs], ..., sorted [num_pairs], counts [num_experts], parts [num_parts, 3]
//! write routes u32

var<workgroup> sh_counts: array<u32, {LANES}>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let expert = workgroup.x;
    // Each lane has neighbours.
    let share = (params.num_pairs + {LANES}u - 1u) / {LANES}u;
    let start = min(lane * share, params.num_pairs);
    let end = min(start + share, params.num_pairs);
    var count = 0u;
    for (var pair = start; pair < end; pair++) {
        count += select(0u, 1u, routes[pair] == expert);
    }
    sh_counts[lane] = count;
    workgroupBarrier();
    var before = 0u;
    var total = 0u;
    for (var other = 0u; other < {LANES}u; other++) {
        before += select(0u, sh_counts[other], other < lane);
        total += sh_counts[other];
    }
//! if COUNTS
    if (lane == 0u) {
        routes[params.counts_at + expert] = total;
    }
//! else
    var first = 0u;
    var part = 0u;
    for (var other = 0u; other < expert; other++) {
        let pairs = routes[params.counts_at + other];
        first += pairs;
        part += (pairs + params.rows_of_part - 1u) / params.rows_of_part;
    }
    var at = params.sorted_at + first + before;
    for (var pair = start; pair < end; pair++) {
        if (routes[pair] == expert) {
            routes[at] = pair;
            at++;
        }
    }
    let parts = (total + params.rows_of_part - 1u) / params.rows_of_part;
    for (var i = lane; i < parts; i += {LANES}u) {
        let done = i * params.rows_of_part;
        let entry = params.parts_at + 3u * (part + i);
        routes[entry] = expert;
        routes[entry + 1u] = first + done;
        routes[entry + 2u] = min(params.rows_of_part, total - done);
    }
    // The last one says that those which nobody has are empty.
    if (expert == params.num_experts - 1u) {
        for (var i = part + parts + lane; i < params.num_parts; i += {LANES}u) {
            routes[params.parts_at + 3u * i + 2u] = 0u;
        }
    }
//! end
}
