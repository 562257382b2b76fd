//! Packages that are not what they should be, made with dpkg-deb.

use std::os::unix::fs::symlink;

use banger_proto::Digest;

use super::*;
use crate::Silent;

const CONTROL: &str = "\
Package: linux-image-test
Version: 1
Architecture: amd64
Maintainer: test <test@example.org>
Description: test
";

/// Why a package with these files is refused; afterwards the store has nothing. `None` where the programs for
/// that are missing, which is told.
fn refused(fill: impl FnOnce(&Path), damage: impl FnOnce(&Path)) -> Option<String> {
    let (Ok(dpkg_deb), Ok(depmod)) = (Program::new("dpkg-deb"), Program::new("depmod")) else {
        testkit::not_run("kernel: packages that are refused", "dpkg-deb or depmod is not installed");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("package");
    fs::create_dir_all(root.join("DEBIAN")).unwrap();
    fs::create_dir_all(root.join("boot")).unwrap();
    fs::write(root.join("DEBIAN/control"), CONTROL).unwrap();
    fill(&root);
    let deb = dir.path().join("test.deb");
    let build = dpkg_deb.clone().args(["-Znone", "--root-owner-group", "--build"]).arg(&root).arg(&deb);
    build.run().unwrap();
    damage(&deb);

    let store = Store::open(&dir.path().join("store")).unwrap();
    let staging = store.stage().unwrap();
    let name = "linux-image-test".to_owned();
    let package = Package { name, version: "1".to_owned(), digest: Digest::from_sha256([0; 32]) };
    let tools = Tools { dpkg_deb, depmod };
    let error = install(&store, staging, &tools, &deb, package, "test".to_owned(), &Silent).unwrap_err();
    for place in ["staging", "kernels"] {
        assert_eq!(fs::read_dir(dir.path().join("store").join(place)).unwrap().count(), 0, "{place}");
    }
    Some(banger_proto::error::chain(&error).join(": "))
}

fn elf() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(18, 0);
    elf.extend([62, 0, 1, 2, 3, 4]);
    elf
}

fn check(fill: impl FnOnce(&Path), expected: &str) {
    if let Some(error) = refused(fill, |_| {}) {
        assert!(error.contains(expected), "{error}\n instead of {expected}");
    }
}

#[test]
fn a_package_needs_one_kernel_with_its_modules() {
    check(|_| {}, "it has no /boot");
    check(
        |root| {
            fs::write(root.join("boot/vmlinuz-1"), b"").unwrap();
            fs::write(root.join("boot/vmlinuz-2"), b"").unwrap();
        },
        "it has not exactly one /boot/vmlinuz-*",
    );
    check(|root| fs::write(root.join("boot/vmlinuz-6.1 x"), elf()).unwrap(), "its release is no release");
    check(|root| fs::write(root.join("boot/vmlinuz-6.1"), b"no kernel").unwrap(), "it is no bzImage");
    check(|root| symlink("/etc/passwd", root.join("boot/vmlinuz-6.1")).unwrap(), "a file in it is none");
    check(|root| fs::write(root.join("boot/vmlinuz-6.1"), elf()).unwrap(), "it has no modules for 6.1");
}

#[test]
fn modules_behind_a_link_are_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    check(
        |root| {
            fs::write(root.join("boot/vmlinuz-6.1"), elf()).unwrap();
            fs::create_dir_all(root.join("lib/modules")).unwrap();
            symlink(outside.path(), root.join("lib/modules/6.1")).unwrap();
        },
        "it has no modules for 6.1",
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_kernel_that_finds_no_root_is_refused() {
    check(
        |root| {
            fs::write(root.join("boot/vmlinuz-6.1"), elf()).unwrap();
            fs::create_dir_all(root.join("lib/modules/6.1")).unwrap();
            fs::write(root.join("lib/modules/6.1/modules.builtin"), b"kernel/ext4.ko\n").unwrap();
            fs::write(root.join("lib/modules/6.1/modules.order"), b"").unwrap();
        },
        "its kernel has no virtio_mmio, without which no guest boots",
    );
}

#[test]
fn a_package_that_is_cut_short_is_refused_with_the_words_of_dpkg() {
    let fill = |root: &Path| fs::write(root.join("boot/vmlinuz-6.1"), vec![7; 100_000]).unwrap();
    let cut = |deb: &Path| fs::OpenOptions::new().write(true).open(deb).unwrap().set_len(50_000).unwrap();
    if let Some(error) = refused(fill, cut) {
        assert!(error.contains("dpkg-deb ended with"), "{error}");
    }
}
