
// Odd numbers from -15 to 15, but the first and the last half a step further out.
fn level_of(code: vec4<f32>) -> vec4<f32> {
    let odd = fma(code, vec4<f32>(2.0), vec4<f32>(-15.0));
    let within = clamp(odd, vec4<f32>(-14.0), vec4<f32>(14.0));
    return fma(odd - within, vec4<f32>(0.5), odd);
}
