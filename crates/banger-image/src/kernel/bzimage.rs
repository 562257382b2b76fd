//! The uncompressed kernel inside an x86 bzImage (kernel doc "The Linux/x86 Boot Protocol").
//!
//! ```text
//! | boot sector and set-up code, (setup_sects + 1) * 512 | protected-mode code                            |
//!   0x1f1 setup_sects, 0x202 "HdrS"                        payload_offset -> | compressed ELF | size |
//! ```
//!
//! All but gzip are followed by the size of the ELF in 4 bytes (`size_append` in scripts/Makefile.lib). What
//! depends on the architecture is in this file alone.

use std::io::Read;

use crate::compression::Format;

/// No kernel is larger when decompressed.
const MAX_KERNEL: u64 = 512 << 20;
/// The block of LZ4's legacy frame (lz4_Frame_format.md, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;

/// Why there is no kernel in a file.
#[derive(Debug, thiserror::Error)]
pub enum KernelImageError {
    /// It has no header of a bzImage.
    #[error("it is no bzImage: {0}")]
    Header(&'static str),
    /// The header points outside the file, or sizes don't fit.
    #[error("its payload is broken: {0}")]
    Payload(&'static str),
    /// Compressed in a way that is not read.
    #[error("its payload is compressed with {0}; gzip, xz, zstd and LZ4 are read")]
    Format(&'static str),
    /// Decompression failed.
    #[error("its payload cannot be decompressed")]
    Decompress(#[source] std::io::Error),
    /// What came out is no kernel.
    #[error("it holds no ELF of x86-64")]
    NoElf,
}

/// The ELF kernel in `image`, which may itself be one.
pub(crate) fn vmlinux(image: &[u8]) -> Result<Vec<u8>, KernelImageError> {
    if is_elf(image) {
        return Ok(image.to_vec());
    }
    let payload = payload(image)?;
    let format = Format::detect(payload);
    let (payload, expected) = match format {
        Format::Gzip => (payload, None),
        Format::Xz | Format::Zstd | Format::Lz4Legacy => {
            let (payload, size) =
                payload.split_last_chunk::<4>().ok_or(KernelImageError::Payload("it is too short"))?;
            (payload, Some(u32::from_le_bytes(*size)))
        }
        Format::Bzip2 | Format::Lzma => return Err(KernelImageError::Format(format.as_str())),
        Format::Plain => return Err(KernelImageError::Format("an unknown method")),
    };
    let elf = match format {
        Format::Lz4Legacy => lz4_legacy(payload)?,
        Format::Gzip => capped(flate2::read::GzDecoder::new(payload))?,
        Format::Xz => capped(xz2::read::XzDecoder::new(payload))?,
        Format::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(payload).map_err(KernelImageError::Decompress)?;
            capped(decoder.single_frame())?
        }
        Format::Bzip2 | Format::Lzma | Format::Plain => {
            return Err(KernelImageError::Format(format.as_str()));
        }
    };
    if expected.is_some_and(|expected| expected as usize != elf.len()) {
        return Err(KernelImageError::Payload("its size is not what it says"));
    }
    if is_elf(&elf) { Ok(elf) } else { Err(KernelImageError::NoElf) }
}

fn payload(image: &[u8]) -> Result<&[u8], KernelImageError> {
    let u32_at = |at: usize| {
        let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or(KernelImageError::Header("it is too short"))
    };
    if u32_at(0x202)?.to_le_bytes() != *b"HdrS" {
        return Err(KernelImageError::Header("the magic number is missing"));
    }
    // payload_offset came with protocol 2.08.
    if u32_at(0x206)? & 0xffff < 0x208 {
        return Err(KernelImageError::Header("its boot protocol is older than 2.08"));
    }
    let setup = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((setup + 1) * 512).saturating_add(u32_at(0x248)? as usize);
    let end = start.saturating_add(u32_at(0x24c)? as usize);
    image.get(start..end).ok_or(KernelImageError::Payload("it is not inside the file"))
}

fn capped(decoder: impl Read) -> Result<Vec<u8>, KernelImageError> {
    let mut out = Vec::new();
    decoder.take(MAX_KERNEL + 1).read_to_end(&mut out).map_err(KernelImageError::Decompress)?;
    if out.len() as u64 > MAX_KERNEL {
        return Err(KernelImageError::Payload("it is larger than any kernel"));
    }
    Ok(out)
}

/// A magic number, then blocks of a size and so many compressed bytes.
fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>, KernelImageError> {
    let mut rest = &payload[4..];
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let (compressed, tail) =
            tail.split_at_checked(size).ok_or(KernelImageError::Payload("a block is cut short"))?;
        let length = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| KernelImageError::Decompress(std::io::Error::other(error)))?;
        out.extend_from_slice(&block[..length]);
        if out.len() as u64 > MAX_KERNEL {
            return Err(KernelImageError::Payload("it is larger than any kernel"));
        }
        rest = tail;
    }
    if rest.is_empty() { Ok(out) } else { Err(KernelImageError::Payload("a block is cut short")) }
}

/// A 64-bit little-endian ELF for x86-64 (`EM_X86_64`, 62).
fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&[62, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(18, 0);
        elf.extend([62, 0]);
        elf.extend((0..20_000u32).flat_map(u32::to_le_bytes));
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 64];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([9; 100]);
        image
    }

    fn sized(mut payload: Vec<u8>, size: usize) -> Vec<u8> {
        payload.extend((size as u32).to_le_bytes());
        payload
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for chunk in bytes.chunks(30_000) {
            let block = lz4_flex::block::compress(chunk);
            out.extend((block.len() as u32).to_le_bytes());
            out.extend(block);
        }
        out
    }

    #[test]
    fn every_compression_of_kernels_is_read() {
        let elf = elf();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf).unwrap();
        let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&elf).unwrap();
        let payloads = [
            gzip.finish().unwrap(),
            sized(xz.finish().unwrap(), elf.len()),
            sized(zstd::encode_all(&elf[..], 1).unwrap(), elf.len()),
            sized(lz4(&elf), elf.len()),
        ];
        for payload in payloads {
            assert!(vmlinux(&bzimage(&payload)).unwrap() == elf);
        }
        assert!(vmlinux(&elf).unwrap() == elf);
    }

    #[test]
    fn broken_images_are_refused() {
        let refused = |image: &[u8]| vmlinux(image).unwrap_err().to_string();
        assert!(refused(b"").contains("no bzImage"));
        assert!(refused(&[0; 4096]).contains("no bzImage"));
        assert!(refused(&bzimage(b"BZh9xxxx")).contains("bzip2"));
        assert!(refused(&bzimage(b"\x5d\0\0\0xxxx")).contains("lzma"));
        assert!(refused(&bzimage(b"????????")).contains("an unknown method"));
        assert!(refused(&bzimage(&sized(lz4(&elf()), 5))).contains("its size is not"));
        assert!(refused(&bzimage(&sized(lz4(b"no kernel"), 9))).contains("no ELF"));
        let mut cut = lz4(&elf());
        cut.truncate(cut.len() - 9);
        assert!(refused(&bzimage(&sized(cut, elf().len()))).contains("cut short"));
        let mut outside = bzimage(&sized(lz4(&elf()), elf().len()));
        outside[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(refused(&outside).contains("not inside the file"));
    }
}
