//! Compressed streams, told apart by their first bytes.

use std::io::{self, Chain, Cursor, Read};

/// Bytes needed to tell formats apart.
pub(crate) const MAGIC_LENGTH: usize = 6;
/// Memory that an xz stream may ask for; `xz -9` asks for 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz format of XZ Utils.
    Xz,
    /// The legacy frame of LZ4, as the kernel uses it.
    Lz4Legacy,
    /// bzip2, which is refused.
    Bzip2,
    /// .lzma, which is refused.
    Lzma,
    /// None of these.
    Plain,
}

impl Format {
    /// The format whose magic number these bytes begin with.
    pub(crate) fn detect(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4Legacy,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0x5d, 0, 0, ..] => Self::Lzma,
            _ => Self::Plain,
        }
    }

    /// The word for people.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lz4Legacy => "LZ4",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Plain => "uncompressed",
        }
    }
}

/// A stream as it is without its compression. An unknown format is passed on as it is; one that is known and
/// not read is an error of kind `Unsupported`. The output is not bounded: the reader's caller does that.
pub(crate) fn decompressed<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(MAGIC_LENGTH);
    input.by_ref().take(MAGIC_LENGTH as u64).read_to_end(&mut magic)?;
    let format = Format::detect(&magic);
    let whole: Chain<Cursor<Vec<u8>>, _> = Cursor::new(magic).chain(input);
    Ok(match format {
        Format::Plain => Box::new(whole),
        Format::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Format::Zstd => Box::new(zstd::stream::read::Decoder::new(whole)?),
        Format::Xz => {
            let flags = xz2::stream::CONCATENATED;
            let stream =
                xz2::stream::Stream::new_stream_decoder(XZ_MEMORY, flags).map_err(io::Error::other)?;
            Box::new(xz2::read::XzDecoder::new_stream(whole, stream))
        }
        Format::Lz4Legacy | Format::Bzip2 | Format::Lzma => {
            let text = format!("it is compressed with {}; gzip, zstd and xz are read", format.as_str());
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompressed(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_format_is_read_and_a_cut_one_is_an_error() {
        let text = b"some text, some text, some text".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&text).unwrap();
        let streams = [gzip.finish().unwrap(), xz.finish().unwrap(), zstd::encode_all(&text[..], 1).unwrap()];
        for stream in streams {
            assert_eq!(read(&stream).unwrap(), text);
            assert!(read(&stream[..stream.len() - 3]).is_err());
        }
        assert_eq!(read(&text).unwrap(), text);
        assert_eq!(read(b"").unwrap(), b"");
    }

    #[test]
    fn what_is_not_read_is_named() {
        let error = read(b"BZh91AY").unwrap_err().to_string();
        assert!(error.contains("bzip2"), "{error}");
    }
}
