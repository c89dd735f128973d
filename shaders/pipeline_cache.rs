//! Compiled kernels, kept on disk between runs where the driver hands them out. Most desktop
//! drivers keep such a cache of their own; where one doesn't, compiling takes most of a start.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// More than all our kernels in all formats take; a larger file isn't ours.
const MAX_BYTES: u64 = 256 << 20;

/// What a driver compiled, and where it is kept.
pub(crate) struct PipelineCache {
    pub(crate) cache: wgpu::PipelineCache,
    file: PathBuf,
}

impl PipelineCache {
    /// What was kept in `folder` for this adapter, or an empty cache. `None` where the driver has
    /// nothing to keep.
    pub(crate) fn open(
        device: &wgpu::Device,
        info: &wgpu::AdapterInfo,
        folder: &Path,
    ) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(wgpu::util::pipeline_cache_key(info)?);
        let data = read(&file)
            .inspect_err(|error| tracing::warn!(%error, file = %file.display(), "not read"))
            .unwrap_or_default();
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the bytes were written by `save` into a folder of the user's own; wgpu refuses
        // those of another driver or device by their header, and starts empty.
        #[allow(unsafe_code, reason = "there is no other way to hand a cache back")]
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { cache, file })
    }

    /// Writes what was compiled since, all of it or nothing.
    pub(crate) fn save(&self) -> io::Result<()> {
        let Some(data) = self.cache.get_data() else { return Ok(()) };
        if read(&self.file).is_ok_and(|kept| kept.as_deref() == Some(&data)) {
            return Ok(());
        }
        write(&self.file, &data)
    }
}

/// Writes a file and the folder that it is in, all of it or nothing.
pub(crate) fn write(path: &Path, data: &[u8]) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    // Two processes may end a load at once: each writes a file of its own.
    let temporary = path.with_extension(std::process::id().to_string());
    let mut file = File::create(&temporary)?;
    file.write_all(data)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut data = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut data)?;
    Ok(Some(data))
}

#[cfg(test)]
mod tests {
    use crate::gpu::{Gpu, GpuOptions};
    use crate::rms_norm::RmsNorm;

    #[test]
    fn what_was_compiled_is_kept_and_a_spoilt_file_does_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let cache_dir = Some(folder.path().join("kernels"));
            Gpu::open_with(None, GpuOptions { cache_dir, ..GpuOptions::default() })
        };
        let Ok(gpu) = open() else { return };
        RmsNorm::new(&gpu).unwrap();
        gpu.save_kernels();
        let Some(file) = std::fs::read_dir(folder.path().join("kernels")).ok() else {
            eprintln!("skipped: the driver keeps no kernels");
            return;
        };
        let files: Vec<_> = file.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        drop(gpu);
        let kept = std::fs::read(&files[0]).unwrap();
        for spoilt in [&b"nothing"[..], &kept[..kept.len() / 2], &[0xff; 1000]] {
            std::fs::write(&files[0], spoilt).unwrap();
            let gpu = open().unwrap();
            RmsNorm::new(&gpu).unwrap();
            gpu.check().unwrap();
            gpu.save_kernels();
            drop(gpu);
            assert_ne!(std::fs::read(&files[0]).unwrap(), spoilt);
        }
    }
}
