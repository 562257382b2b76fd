//! Names of images and kernels, and what they mean. The files themselves are in `banger_image`'s store.

use std::collections::BTreeSet;

use banger_proto::{Digest, ImageName, KernelName};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::StoreError;
use super::{bytes, parse, size};
use crate::model::{ImageRecord, KernelRecord};

type Raw = (String, String, i64, i64, String, i64);

/// Gives a name a meaning; an older one is replaced.
pub fn put_image(conn: &Connection, image: &ImageRecord) -> Result<(), StoreError> {
    conn.execute(
        "INSERT OR REPLACE INTO images (name, digest, size, disk_used, source, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            image.name.as_str(),
            image.digest.as_str(),
            bytes("an image size", image.size)?,
            bytes("a size", image.disk_used)?,
            image.source,
            image.created_at
        ],
    )
    .map_err(StoreError::sql("record an image"))?;
    Ok(())
}

/// Every image, by name.
pub fn images(conn: &Connection) -> Result<Vec<ImageRecord>, StoreError> {
    let sql = StoreError::sql("read the images of the store");
    let mut statement = conn
        .prepare_cached("SELECT name, digest, size, disk_used, source, created_at FROM images ORDER BY name")
        .map_err(&sql)?;
    let rows = statement.query_map([], raw_image).map_err(&sql)?;
    rows.map(|row| image(row.map_err(&sql)?)).collect()
}

/// The image of a name.
pub fn find_image(conn: &Connection, name: &ImageName) -> Result<Option<ImageRecord>, StoreError> {
    conn.query_row(
        "SELECT name, digest, size, disk_used, source, created_at FROM images WHERE name = ?1",
        [name.as_str()],
        raw_image,
    )
    .optional()
    .map_err(StoreError::sql("look for an image"))?
    .map(image)
    .transpose()
}

fn raw_image(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
}

fn image((name, digest, bytes, disk_used, source, created_at): Raw) -> Result<ImageRecord, StoreError> {
    Ok(ImageRecord {
        name: parse("an image name", name)?,
        digest: parse("a digest", digest)?,
        size: size("an image size", bytes)?,
        disk_used: size("a size", disk_used)?,
        source,
        created_at,
    })
}

/// Forgets a name. Idempotent.
pub fn delete_image(conn: &Connection, name: &ImageName) -> Result<(), StoreError> {
    conn.execute("DELETE FROM images WHERE name = ?1", [name.as_str()])
        .map_err(StoreError::sql("forget an image"))?;
    Ok(())
}

/// Gives a name a meaning; an older one is replaced.
pub fn put_kernel(conn: &Connection, kernel: &KernelRecord) -> Result<(), StoreError> {
    conn.execute(
        "INSERT OR REPLACE INTO kernels (name, digest, release, package_digest, disk_used, source, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            kernel.name.as_str(),
            kernel.digest.as_str(),
            kernel.release,
            kernel.package_digest.as_ref().map(Digest::as_str),
            bytes("a size", kernel.disk_used)?,
            kernel.source,
            kernel.created_at
        ],
    )
    .map_err(StoreError::sql("record a kernel"))?;
    Ok(())
}

/// Every kernel, by name.
pub fn kernels(conn: &Connection) -> Result<Vec<KernelRecord>, StoreError> {
    let sql = StoreError::sql("read the kernels of the store");
    let mut statement = conn
        .prepare_cached(
            "SELECT name, digest, release, package_digest, disk_used, source, created_at FROM kernels ORDER BY name",
        )
        .map_err(&sql)?;
    let mut rows = statement.query([]).map_err(&sql)?;
    let mut kernels = Vec::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        let package: Option<String> = row.get(3).map_err(&sql)?;
        kernels.push(KernelRecord {
            name: parse("a kernel name", row.get(0).map_err(&sql)?)?,
            digest: parse("a digest", row.get(1).map_err(&sql)?)?,
            release: row.get(2).map_err(&sql)?,
            package_digest: package.map(|text| parse("a digest", text)).transpose()?,
            disk_used: size("a size", row.get(4).map_err(&sql)?)?,
            source: row.get(5).map_err(&sql)?,
            created_at: row.get(6).map_err(&sql)?,
        });
    }
    Ok(kernels)
}

/// The kernel of a name.
pub fn find_kernel(conn: &Connection, name: &KernelName) -> Result<Option<KernelRecord>, StoreError> {
    Ok(kernels(conn)?.into_iter().find(|kernel| kernel.name == *name))
}

/// Forgets a name. Idempotent.
pub fn delete_kernel(conn: &Connection, name: &KernelName) -> Result<(), StoreError> {
    conn.execute("DELETE FROM kernels WHERE name = ?1", [name.as_str()])
        .map_err(StoreError::sql("forget a kernel"))?;
    Ok(())
}

/// Digests that a name means or a VM was made with: images first, then kernels. Whatever else is on the disk
/// is of no use to anybody.
pub fn digests_in_use(conn: &Connection) -> Result<(BTreeSet<Digest>, BTreeSet<Digest>), StoreError> {
    let read = |text: &str| -> Result<BTreeSet<Digest>, StoreError> {
        let sql = StoreError::sql("read the digests of the store");
        let mut statement = conn.prepare_cached(text).map_err(&sql)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(&sql)?;
        rows.map(|row| parse("a digest", row.map_err(&sql)?)).collect()
    };
    Ok((
        read("SELECT digest FROM images UNION SELECT image_digest FROM vms")?,
        read("SELECT digest FROM kernels UNION SELECT kernel_digest FROM vms")?,
    ))
}
