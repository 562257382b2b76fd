//! One image and one kernel, on the disk and in the store.

use std::path::PathBuf;

use async_trait::async_trait;
use banger_daemon::model::{ImageRecord, KernelRecord};
use banger_daemon::ports::{BootFiles, Contents};
use banger_daemon::store::{Store, content};
use banger_proto::{ByteSize, Digest, ErrorCode, ErrorReport};

use super::FakeWorld;

/// The name of the image that there is.
pub const IMAGE: &str = "fake-image";
/// The name of the kernel that there is.
pub const KERNEL: &str = "fake-kernel";
/// The size of the image.
pub const IMAGE_SIZE: ByteSize = ByteSize::mib(64);

pub(super) fn image_digest() -> Digest {
    Digest::from_sha256([1; 32])
}

pub(super) fn kernel_digest() -> Digest {
    Digest::from_sha256([2; 32])
}

impl FakeWorld {
    pub(super) fn make_contents(&self) -> anyhow::Result<()> {
        let contents = FakeContents::new(self);
        let (image, kernel) = (contents.image(), contents.kernel());
        for dir in [&contents.images(), &kernel] {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::File::create(image)?.set_len(IMAGE_SIZE.as_bytes())?;
        for file in ["vmlinux", "initrd", "modules"] {
            std::fs::write(kernel.join(file), "")?;
        }
        // Dropping the store closes it, in its own time.
        let store = Store::open(&self.paths().database())?;
        let image = ImageRecord {
            name: IMAGE.parse()?,
            digest: image_digest(),
            size: IMAGE_SIZE,
            disk_used: IMAGE_SIZE,
            source: "made up".into(),
            created_at: 0,
        };
        let kernel = KernelRecord {
            name: KERNEL.parse()?,
            digest: kernel_digest(),
            release: "0.0-fake".into(),
            package_digest: None,
            disk_used: ByteSize::mib(1),
            source: "made up".into(),
            created_at: 0,
        };
        let written = store.begin(banger_daemon::store::Durability::Process, move |conn| {
            content::put_image(conn, &image)?;
            content::put_kernel(conn, &kernel)
        });
        // On a thread of its own, because the caller may be a task.
        let written = std::thread::spawn(|| written.blocking_recv()).join();
        let written = written.map_err(|_| anyhow::anyhow!("the thread that waits for the store panicked"))?;
        Ok(written??)
    }

    /// Whether the image and the kernel are on the disk.
    pub(super) fn has_contents(&self) -> bool {
        let contents = FakeContents::new(self);
        contents.image().is_file() && contents.kernel().is_dir()
    }
}

/// The contents of a world.
#[derive(Debug)]
pub(super) struct FakeContents {
    root: PathBuf,
}

impl FakeContents {
    pub(super) fn new(world: &FakeWorld) -> Self {
        Self { root: world.dir().join("contents") }
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn image(&self) -> PathBuf {
        self.images().join("root.ext4")
    }

    fn kernel(&self) -> PathBuf {
        self.root.join("kernel")
    }
}

#[async_trait]
impl Contents for FakeContents {
    async fn boot_files(&self, kernel: &Digest) -> Result<BootFiles, ErrorReport> {
        let dir = self.kernel();
        if *kernel != kernel_digest() || !dir.is_dir() {
            return Err(ErrorReport::new(
                ErrorCode::KernelMissing,
                format!("cannot use the kernel {kernel}"),
            ));
        }
        Ok(BootFiles {
            kernel: dir.join("vmlinux"),
            initrd: dir.join("initrd"),
            modules_drive: dir.join("modules"),
            release: "0.0-fake".into(),
        })
    }

    async fn image_file(&self, image: &Digest) -> Result<PathBuf, ErrorReport> {
        let path = self.image();
        if *image != image_digest() || !path.is_file() {
            return Err(ErrorReport::new(ErrorCode::ImageMissing, format!("cannot use the image {image}")));
        }
        Ok(path)
    }

    async fn all(&self) -> Result<(Vec<Digest>, Vec<Digest>), ErrorReport> {
        let there = |is: bool, digest| if is { vec![digest] } else { Vec::new() };
        let (image, kernel) = (self.image().is_file(), self.kernel().is_dir());
        Ok((there(image, image_digest()), there(kernel, kernel_digest())))
    }

    async fn remove_image(&self, image: &Digest) -> Result<(), ErrorReport> {
        let gone = *image != image_digest();
        removed(if gone { Ok(()) } else { std::fs::remove_file(self.image()) })
    }

    async fn remove_kernel(&self, kernel: &Digest) -> Result<(), ErrorReport> {
        let gone = *kernel != kernel_digest();
        removed(if gone { Ok(()) } else { std::fs::remove_dir_all(self.kernel()) })
    }
}

fn removed(result: std::io::Result<()>) -> Result<(), ErrorReport> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ErrorReport::caused_by(ErrorCode::Internal, "cannot remove contents", &error))
        }
        _ => Ok(()),
    }
}
