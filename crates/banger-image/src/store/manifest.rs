//! What is recorded beside every object: strict JSON with a schema number.

use banger_proto::{ByteSize, Digest};
use serde::{Deserialize, Serialize};

/// About an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// [`ImageManifest::SCHEMA`].
    pub schema: u32,
    /// Digest of the ext4 file, by which the image is addressed.
    pub digest: Digest,
    /// Size of the ext4 file in bytes.
    pub size: ByteSize,
    /// Where it comes from, for people.
    pub source: String,
    /// When it was made, seconds since 1970.
    pub created_at: i64,
}

impl ImageManifest {
    /// The schema that this version writes and reads.
    pub const SCHEMA: u32 = 1;
}

/// About a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelManifest {
    /// [`KernelManifest::SCHEMA`].
    pub schema: u32,
    /// Digest of the uncompressed ELF, by which the kernel is addressed.
    pub digest: Digest,
    /// Size of the uncompressed ELF in bytes.
    pub size: ByteSize,
    /// `uname -r` of it.
    pub release: String,
    /// Digest of the modules drive.
    pub modules_digest: Digest,
    /// Size of the modules drive in bytes.
    pub modules_size: ByteSize,
    /// What the initrd loads, in this order.
    pub boot_modules: Vec<BootModule>,
    /// The package it came in, where it came in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Package>,
    /// Where it comes from, for people.
    pub source: String,
    /// When it was made, seconds since 1970.
    pub created_at: i64,
}

impl KernelManifest {
    /// The schema that this version writes and reads.
    pub const SCHEMA: u32 = 1;
}

/// A module that is loaded before the root can be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootModule {
    /// Its file name below `modules/`.
    pub file: String,
    /// Digest of that file.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: ByteSize,
}

/// A package of a distribution, as its signed index describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its digest in the index, which the file had.
    pub digest: Digest,
}
