//! The store's promises, on a temporary directory.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use banger_proto::{ByteSize, Digest};

use super::*;
use crate::Silent;

const SIZE: u64 = 8192;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn add_image(store: &Store, source: &str) -> Image {
    let staging = store.stage().unwrap();
    File::create(staging.image_file()).unwrap().set_len(SIZE).unwrap();
    let (digest, size) = digest_file(&staging.image_file(), &Silent).unwrap();
    let manifest = ImageManifest {
        schema: ImageManifest::SCHEMA,
        digest,
        size: ByteSize::bytes(size),
        source: source.to_owned(),
        created_at: 1,
    };
    store.commit_image(staging, manifest).unwrap()
}

#[test]
fn an_image_is_kept_shown_and_deleted() {
    let (_dir, store) = store();
    let image = add_image(&store, "one");
    assert_eq!(store.images().unwrap(), [image.digest().clone()]);
    assert_eq!(store.image(image.digest()).unwrap(), image);
    image.verify(&Silent).unwrap();
    assert!(image.disk_used().unwrap().as_bytes() < SIZE + 8192, "holes are not counted");
    assert_eq!(image.path().metadata().unwrap().mode() & 0o777, 0o400);
    assert!(store.staging_dir().read_dir().unwrap().next().is_none());

    store.delete_image(image.digest()).unwrap();
    assert!(store.images().unwrap().is_empty());
    assert!(matches!(store.image(image.digest()), Err(StoreError::Missing { .. })));
    assert!(matches!(store.delete_image(image.digest()), Err(StoreError::Missing { .. })));
    assert!(store.staging_dir().read_dir().unwrap().next().is_none());
}

#[test]
fn the_same_content_again_replaces_the_manifest() {
    let (_dir, store) = store();
    add_image(&store, "one");
    let image = add_image(&store, "two");
    assert_eq!(store.images().unwrap().len(), 1);
    assert_eq!(image.manifest().source, "two");
    assert!(store.staging_dir().read_dir().unwrap().next().is_none());
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let (_dir, store) = store();
    let staging = store.stage().unwrap();
    fs::write(staging.image_file(), b"half").unwrap();
    drop(staging);
    assert!(store.staging_dir().read_dir().unwrap().next().is_none());
    assert!(store.images().unwrap().is_empty());
}

#[test]
fn leftovers_of_a_crash_are_swept() {
    let (_dir, store) = store();
    let kept = add_image(&store, "kept");
    fs::create_dir(store.staging_dir().join("old")).unwrap();
    fs::write(store.staging_dir().join("old/file"), b"x").unwrap();
    fs::write(store.staging_dir().join("loose"), b"x").unwrap();
    std::os::unix::fs::symlink("/", store.staging_dir().join("link")).unwrap();
    assert_eq!(store.sweep().unwrap(), 3);
    assert_eq!(store.sweep().unwrap(), 0);
    store.image(kept.digest()).unwrap();
}

#[test]
fn damage_is_noticed() {
    let (_dir, store) = store();
    let image = add_image(&store, "one");
    let path = image.path();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, vec![1; SIZE as usize]).unwrap();
    assert!(matches!(image.verify(&Silent), Err(StoreError::Damaged { .. })));
    fs::write(&path, b"short").unwrap();
    let error = store.image(image.digest()).unwrap_err().to_string();
    assert!(error.contains("has 5 bytes instead of 8192"), "{error}");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    let error = store.image(image.digest()).unwrap_err().to_string();
    assert!(error.contains("is no regular file"), "{error}");
}

#[test]
fn manifests_are_strict_and_versioned() {
    let (_dir, store) = store();
    let image = add_image(&store, "one");
    let path = image.dir.join(MANIFEST_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let rewrite = |text: String| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
        store.image(image.digest()).unwrap_err()
    };
    let newer = rewrite(text.replace("\"schema\": 1", "\"schema\": 2, \"news\": 1"));
    assert!(matches!(newer, StoreError::Schema { found: 2, known: 1, .. }), "{newer}");
    let unknown = rewrite(text.replace("\"schema\": 1", "\"schema\": 1, \"news\": 1"));
    assert!(matches!(unknown, StoreError::Manifest { .. }), "{unknown}");
    let other = rewrite(text.replace(image.digest().hex(), Digest::from_sha256([7; 32]).hex()));
    assert!(matches!(other, StoreError::Damaged { .. }), "{other}");
    assert!(matches!(rewrite(String::new()), StoreError::Manifest { .. }));
}
