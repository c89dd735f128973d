//! Arrays in the memory of the adapter.

use std::ops::Range;

use bytemuck::Pod;

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::Pass;

/// An array of four-byte elements (f32, u32 or packed numbers) on the adapter. It has no shape:
/// kernels are told.
///
/// Kernels read and write most tensors element by element. Some are only ever taken four elements
/// at a time: weights, inputs of products, the KV cache. A software driver loads from buffers lane
/// by lane and from images a vector at a time, six times as fast, so there these are images
/// ([`Gpu::alloc_vec4s`]); elsewhere they are buffers.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub(crate) storage: Storage,
    len: usize,
}

/// Where the elements are.
#[derive(Debug, Clone)]
pub(crate) enum Storage {
    Buffer(wgpu::Buffer),
    /// Element `n * (y * IMAGE_WIDTH + x) + c` is channel `c` of the texel at (x, y), which has n.
    Image {
        texture: wgpu::Texture,
        view: wgpu::TextureView,
        texel: Texel,
    },
}

/// What the elements of an image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Texel {
    F32,
    U32,
    /// Two of u32.
    Pair,
}

/// Texels in a row of an image. `image.wgsl` has it from here.
pub(crate) const IMAGE_WIDTH: usize = 8192;

impl Tensor {
    /// Whether both are the same memory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (&self.storage, &other.storage) {
            (Storage::Buffer(own), Storage::Buffer(other)) => own == other,
            (Storage::Image { view: own, .. }, Storage::Image { view: other, .. }) => own == other,
            _ => false,
        }
    }

    /// Number of elements of four bytes.
    #[allow(clippy::len_without_is_empty, reason = "a tensor has at least one element")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies a range of elements to `staging` from byte `offset` on; of an image, whole vec4s.
    pub(crate) fn copy_out(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        elements: &Range<usize>,
        staging: &wgpu::Buffer,
        offset: u64,
    ) {
        assert!(elements.start <= elements.end, "a range runs forward");
        assert!(elements.end <= self.len, "a range lies within its tensor");
        match &self.storage {
            Storage::Buffer(buffer) => {
                let num_bytes = elements.len() as u64 * 4;
                encoder.copy_buffer_to_buffer(
                    buffer,
                    elements.start as u64 * 4,
                    staging,
                    offset,
                    num_bytes,
                );
            }
            Storage::Image { texture, texel, .. } => {
                let mut offset = offset;
                for rectangle in rectangles(elements, *texel) {
                    let layout =
                        wgpu::TexelCopyBufferLayout { offset, ..rectangle.buffer_layout() };
                    encoder.copy_texture_to_buffer(
                        rectangle.of(texture),
                        wgpu::TexelCopyBufferInfo { buffer: staging, layout },
                        rectangle.extent(),
                    );
                    offset += rectangle.num_bytes() as u64;
                }
            }
        }
    }
}

/// A part of an image.
struct Rectangle {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
    texel: Texel,
}

/// What a range of elements is made of: the end of a row, rows, the start of a row.
fn rectangles(elements: &Range<usize>, texel: Texel) -> impl Iterator<Item = Rectangle> {
    let len = texel.len();
    assert!(
        elements.start.is_multiple_of(len) && elements.end.is_multiple_of(len),
        "images are copied by texels"
    );
    let (mut next, end) = (elements.start / len, elements.end / len);
    std::iter::from_fn(move || {
        let (x, y) = (next % IMAGE_WIDTH, next / IMAGE_WIDTH);
        let remaining = end - next;
        if remaining == 0 {
            return None;
        }
        let (width, height) = if x == 0 && remaining >= IMAGE_WIDTH {
            (IMAGE_WIDTH, remaining / IMAGE_WIDTH)
        } else {
            (remaining.min(IMAGE_WIDTH - x), 1)
        };
        next += width * height;
        Some(Rectangle { x, y, width, height, texel })
    })
}

impl Rectangle {
    fn num_bytes(&self) -> usize {
        self.width * self.height * self.texel.num_bytes()
    }

    fn of<'a>(&self, texture: &'a wgpu::Texture) -> wgpu::TexelCopyTextureInfo<'a> {
        wgpu::TexelCopyTextureInfo {
            texture,
            mip_level: 0,
            origin: wgpu::Origin3d { x: self.x as u32, y: self.y as u32, z: 0 },
            aspect: wgpu::TextureAspect::All,
        }
    }

    fn extent(&self) -> wgpu::Extent3d {
        extent(self.width, self.height)
    }

    /// Of a copy between the image and a buffer that holds nothing else.
    fn buffer_layout(&self) -> wgpu::TexelCopyBufferLayout {
        wgpu::TexelCopyBufferLayout {
            offset: 0,
            // One row needs none, and its length would have to be aligned.
            bytes_per_row: (self.height > 1)
                .then_some((self.width * self.texel.num_bytes()) as u32),
            rows_per_image: None,
        }
    }
}

impl Gpu {
    /// A tensor of `len` f32 values, all zero.
    pub fn alloc_f32(&self, len: usize) -> Result<Tensor, GpuError> {
        self.alloc_buffer(len)
    }

    /// A tensor of `len` u32 values, all zero.
    pub(crate) fn alloc_u32(&self, len: usize) -> Result<Tensor, GpuError> {
        self.alloc_buffer(len)
    }

    /// A tensor of `len` f32 values, all zero, that kernels take four at a time.
    pub fn alloc_vec4s(&self, len: usize) -> Result<Tensor, GpuError> {
        if self.caps().images { self.alloc_image(len, Texel::F32) } else { self.alloc_buffer(len) }
    }

    /// A tensor of `len` words, all zero, that kernels take four at a time.
    pub(crate) fn alloc_blocks(&self, len: usize) -> Result<Tensor, GpuError> {
        if self.caps().images { self.alloc_image(len, Texel::U32) } else { self.alloc_buffer(len) }
    }

    /// A tensor of `len` words, all zero, that kernels take two at a time.
    pub(crate) fn alloc_pairs(&self, len: usize) -> Result<Tensor, GpuError> {
        if self.caps().images { self.alloc_image(len, Texel::Pair) } else { self.alloc_buffer(len) }
    }

    /// A tensor with a copy of `data`, whose type has four bytes or a multiple of them.
    pub fn upload<T: Pod>(&self, data: &[T]) -> Result<Tensor, GpuError> {
        let tensor = self.alloc_buffer(size_of_val(data).div_ceil(4))?;
        self.write(&tensor, 0, data);
        Ok(tensor)
    }

    /// A tensor with a copy of `data` that kernels take four values at a time.
    pub fn upload_vec4s(&self, data: &[f32]) -> Result<Tensor, GpuError> {
        let tensor = self.alloc_vec4s(data.len())?;
        self.write(&tensor, 0, data);
        Ok(tensor)
    }

    /// Copies `data` into `tensor` from element `offset` on, before any pass that is submitted
    /// later.
    pub fn write<T: Pod>(&self, tensor: &Tensor, offset: usize, data: &[T]) {
        let mut bytes: &[u8] = bytemuck::cast_slice(data);
        assert!(bytes.len().is_multiple_of(4), "elements have four bytes");
        assert!(offset + bytes.len() / 4 <= tensor.len, "a write lies within its tensor");
        if bytes.is_empty() {
            return;
        }
        match &tensor.storage {
            Storage::Buffer(buffer) => self.queue.write_buffer(buffer, offset as u64 * 4, bytes),
            Storage::Image { texture, texel, .. } => {
                for rectangle in rectangles(&(offset..offset + bytes.len() / 4), *texel) {
                    let part;
                    (part, bytes) = bytes.split_at(rectangle.num_bytes());
                    self.queue.write_texture(
                        rectangle.of(texture),
                        part,
                        rectangle.buffer_layout(),
                        rectangle.extent(),
                    );
                }
            }
        }
    }

    /// Reads a whole tensor of f32 back. For tests and tools: steps read through [`Gpu::submit`].
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>, GpuError> {
        self.read(tensor)
    }

    /// Reads a whole tensor of u32 back. For tests and tools, too.
    pub fn read_u32(&self, tensor: &Tensor) -> Result<Vec<u32>, GpuError> {
        self.read(tensor)
    }

    /// Copies a buffer to another of the same length, as the driver does it, and waits. For tools.
    pub fn copy(&self, from: &Tensor, to: &Tensor) -> Result<(), GpuError> {
        let (Storage::Buffer(_), Storage::Buffer(target)) = (&from.storage, &to.storage) else {
            panic!("the driver's copy is from buffer to buffer")
        };
        assert_eq!(from.len, to.len, "a copy is as long as what is copied");
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        from.copy_out(&mut encoder, &(0..from.len), target, 0);
        self.wait_for(self.queue.submit([encoder.finish()]))
    }

    fn read<T: Pod>(&self, tensor: &Tensor) -> Result<Vec<T>, GpuError> {
        let submission = self.submit(&Pass::new(), Some((tensor, 0..tensor.len)))?;
        self.wait(submission, bytemuck::pod_collect_to_vec)
    }

    fn alloc_buffer(&self, len: usize) -> Result<Tensor, GpuError> {
        // A binding is never empty, and kernels that read four values at a time need whole fours.
        let num_bytes = (len.max(1) as u64).next_multiple_of(4) * 4;
        self.check_size(num_bytes)?;
        let buffer = self.guarded(num_bytes, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: num_bytes,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_DST
                    | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        })?;
        Ok(Tensor { storage: Storage::Buffer(buffer), len })
    }

    pub(crate) fn alloc_image(&self, len: usize, texel: Texel) -> Result<Tensor, GpuError> {
        let num_texels = len.max(1).div_ceil(texel.len());
        self.check_size((num_texels * texel.num_bytes()) as u64)?;
        let height = image_height(num_texels);
        let num_bytes = height * IMAGE_WIDTH * texel.num_bytes();
        let (texture, view) = self.guarded(num_bytes as u64, || {
            let texture = self.device.create_texture(&wgpu::TextureDescriptor {
                label: None,
                size: extent(IMAGE_WIDTH, height),
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: texel.format(),
                usage: wgpu::TextureUsages::TEXTURE_BINDING
                    | wgpu::TextureUsages::STORAGE_BINDING
                    | wgpu::TextureUsages::COPY_DST
                    | wgpu::TextureUsages::COPY_SRC,
                view_formats: &[],
            });
            let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
            (texture, view)
        })?;
        Ok(Tensor { storage: Storage::Image { texture, view, texel }, len })
    }

    /// Bytes that [`alloc_vec4s`](Self::alloc_vec4s) takes for `len` values: images are whole rows.
    pub fn vec4s_bytes(&self, len: usize) -> u64 {
        self.texels_bytes(len, Texel::F32)
    }

    /// Bytes that [`alloc_pairs`](Self::alloc_pairs) takes for `len` words.
    pub(crate) fn pairs_bytes(&self, len: usize) -> u64 {
        self.texels_bytes(len, Texel::Pair)
    }

    fn texels_bytes(&self, len: usize, texel: Texel) -> u64 {
        // Buffers are whole vec4s, whatever is in them.
        let texel = if self.caps().images { texel } else { Texel::F32 };
        let texels = len.max(1).div_ceil(texel.len());
        let texels = if self.caps().images { image_height(texels) * IMAGE_WIDTH } else { texels };
        (texels * texel.num_bytes()) as u64
    }

    fn check_size(&self, num_bytes: u64) -> Result<(), GpuError> {
        let max_bytes = self.caps().max_binding_bytes;
        if num_bytes > max_bytes {
            Err(GpuError::TooLarge { num_bytes, max_bytes })
        } else {
            Ok(())
        }
    }
}

impl Texel {
    pub(crate) fn format(self) -> wgpu::TextureFormat {
        match self {
            Self::F32 => wgpu::TextureFormat::Rgba32Float,
            Self::U32 => wgpu::TextureFormat::Rgba32Uint,
            Self::Pair => wgpu::TextureFormat::Rg32Uint,
        }
    }

    /// Elements of a texel.
    fn len(self) -> usize {
        if self == Self::Pair { 2 } else { 4 }
    }

    fn num_bytes(self) -> usize {
        4 * self.len()
    }
}

/// Rows of an image of so many texels, and never a power of two: a software driver compiles a
/// kernel once more for every set of its images whose sizes are such powers and whose aren't.
fn image_height(num_texels: usize) -> usize {
    match num_texels.div_ceil(IMAGE_WIDTH) {
        0..=2 => 3,
        height if height.is_power_of_two() => height + 1,
        height => height,
    }
}

fn extent(width: usize, height: usize) -> wgpu::Extent3d {
    wgpu::Extent3d { width: width as u32, height: height as u32, depth_or_array_layers: 1 }
}

#[cfg(test)]
mod tests {
    use crate::error::GpuError;
    use crate::testing;

    #[test]
    fn what_is_written_is_read() {
        let Some(gpu) = testing::gpu() else { return };
        let tensor = gpu.upload(&[1.0f32, 2.0, 3.0]).unwrap();
        gpu.write(&tensor, 1, &[5.0f32]);
        assert_eq!(gpu.read_f32(&tensor).unwrap(), [1.0, 5.0, 3.0]);
        let copied = gpu.alloc_f32(3).unwrap();
        gpu.copy(&tensor, &copied).unwrap();
        assert_eq!(gpu.read_f32(&copied).unwrap(), [1.0, 5.0, 3.0]);
        assert_eq!(gpu.read_u32(&gpu.alloc_u32(5).unwrap()).unwrap(), [0; 5]);
    }

    #[test]
    fn images_are_written_across_rows() {
        for gpu in testing::both_layouts() {
            let len = 3 * 4 * super::IMAGE_WIDTH;
            let tensor = gpu.alloc_vec4s(len).unwrap();
            let values: Vec<f32> = (0..len - 24).map(|value| value as f32).collect();
            gpu.write(&tensor, 12, &values);
            let read = gpu.read_f32(&tensor).unwrap();
            assert_eq!(read[..12], [0.0; 12]);
            assert_eq!(read[12..len - 12], values);
            assert_eq!(read[len - 12..], [0.0; 12]);

            let pairs = gpu.alloc_pairs(2 * 3 * super::IMAGE_WIDTH).unwrap();
            let words: Vec<u32> = (0..pairs.len() as u32 - 6).collect();
            gpu.write(&pairs, 2, &words);
            let read = gpu.read_u32(&pairs).unwrap();
            assert_eq!((&read[..2], &read[2..read.len() - 4]), (&[0; 2][..], &words[..]));
        }
    }

    #[test]
    fn the_largest_tensor_can_be_made() {
        for gpu in testing::both_layouts().filter(|gpu| gpu.caps().is_cpu) {
            let len = gpu.caps().max_binding_bytes as usize / 4;
            let tensor = gpu.alloc_vec4s(len).unwrap();
            gpu.write(&tensor, len - 4, &[1.0f32, 2.0, 3.0, 4.0]);
            assert_eq!(gpu.read_f32(&tensor).unwrap()[len - 5..], [0.0, 1.0, 2.0, 3.0, 4.0]);
        }
    }

    #[test]
    fn too_large_is_an_error() {
        let Some(gpu) = testing::gpu() else { return };
        let len = gpu.caps().max_binding_bytes as usize / 4 + 1;
        assert!(matches!(gpu.alloc_f32(len), Err(GpuError::TooLarge { .. })));
    }
}
