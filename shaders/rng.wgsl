// uniform_number(key, counter) = top 24 bits of word 0 of Threefry-2x32-20(key, counter) * 2^-24
//
// Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (2011).

// One of 2^24 numbers in [0, 1), each as likely as any other.
fn uniform_number(key: vec2<u32>, counter: vec2<u32>) -> f32 {
    return f32(threefry(key, counter).x >> 8u) * 0x1p-24;
}

fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    let parity = 0x1bd11bdau ^ key.x ^ key.y;
    let even = vec4<u32>(13u, 15u, 26u, 6u);
    let odd = vec4<u32>(17u, 29u, 16u, 24u);
    var x = four_rounds(counter + key, even) + vec2<u32>(key.y, parity + 1u);
    x = four_rounds(x, odd) + vec2<u32>(parity, key.x + 2u);
    x = four_rounds(x, even) + vec2<u32>(key.x, key.y + 3u);
    x = four_rounds(x, odd) + vec2<u32>(key.y, parity + 4u);
    return four_rounds(x, even) + vec2<u32>(parity, key.x + 5u);
}

fn four_rounds(start: vec2<u32>, rotations: vec4<u32>) -> vec2<u32> {
    let x = one_round(one_round(start, rotations.x), rotations.y);
    return one_round(one_round(x, rotations.z), rotations.w);
}

fn one_round(x: vec2<u32>, rotation: u32) -> vec2<u32> {
    let sum = x.x + x.y;
    return vec2<u32>(sum, ((x.y << rotation) | (x.y >> (32u - rotation))) ^ sum);
}
