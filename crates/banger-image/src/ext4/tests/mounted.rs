//! The kernel as the judge: an image is mounted, and each file of it compared with the tree that it was made from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use banger_sys::command::Program;

use super::{import_tar, store};
use crate::Silent;

/// What the kernel says of one file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    mtime: (i64, i64),
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn walk(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let about = fs::symlink_metadata(&path).unwrap();
        let kind = about.file_type();
        if kind.is_dir() {
            let children = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            paths.extend(children.filter(|child| *child != root.join("lost+found")));
        }
        let content = if kind.is_file() {
            fs::read(&path).unwrap()
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names).unwrap();
        let xattrs = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(|name| {
            let mut value = vec![0; 4096];
            let length =
                rustix::fs::lgetxattr(&path, std::str::from_utf8(name).unwrap(), &mut value).unwrap();
            (name.to_vec(), value[..length].to_vec())
        });
        let seen = Seen {
            mode: about.mode(),
            owner: (about.uid(), about.gid()),
            // The root has lost+found besides.
            links: if kind.is_dir() { 0 } else { about.nlink() },
            device: about.rdev(),
            mtime: (about.mtime(), about.mtime_nsec()),
            content,
            xattrs: xattrs.collect(),
        };
        found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), seen);
    }
    found
}

const MAKE_ODD_ROOT: &str = r#"
set -e; cd "$1"; mkdir -p d/e many; chmod 2755 d; chmod 1777 d/e
i=0; while [ $i -lt 3000 ]; do : > many/a-rather-long-name-for-a-file-$i; i=$((i+1)); done
echo text > f; chown 123456:654321 f; chmod 4711 f; ln f d/hard; ln -s ../f d/soft
ln -s "$(printf 'y%.0s' $(seq 200))" slow; mknod c c 4 64; mknod b b 8 1; mkfifo p
echo x > "$(printf 'bad\377name')"; echo y > "$(printf 'z%.0s' $(seq 255))"; printf '\n' > 'new
line'; truncate -s 50M sparse; printf end >> sparse; printf mid | dd of=sparse bs=1 seek=20000000 conv=notrunc status=none
head -c 3000000 /dev/urandom > random; touch -d '1969-12-31 23:59:58.25 UTC' old; touch -d '2100-01-01 UTC' new
touch -d '2001-02-03 04:05:06.789012345 UTC' d/e d many
"#;

fn add_xattrs(root: &Path) -> rustix::io::Result<()> {
    let named = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let acl = |user: u32| {
        let none = u32::MAX;
        let entries = [
            vec![2, 0, 0, 0],
            named(0x01, 6, none),
            named(0x02, 7, user),
            named(0x04, 4, none),
            named(0x08, 5, 99),
            named(0x10, 7, none),
            named(0x20, 1, none),
        ];
        entries.concat()
    };
    let attributes = [
        ("f", "user.one", b"two".to_vec()),
        ("d", "trusted.t", vec![0, 0xff, b'\n', 0]),
        ("random", "user.big", vec![b'q'; 2000]),
        ("f", "system.posix_acl_access", acl(1234)),
        ("d", "system.posix_acl_access", acl(5)),
        ("d", "system.posix_acl_default", acl(77)),
    ];
    for (path, name, value) in attributes {
        rustix::fs::lsetxattr(root.join(path), name, &value, rustix::fs::XattrFlags::empty())?;
    }
    // ACLs change the mode's bits, and so the time of change, never the time of modification.
    Ok(())
}

/// The oracle: a tree with everything odd, through GNU tar and the importer, mounted, entry by entry.
#[test]
fn the_mounted_image_equals_the_tree() {
    let not_run = |why: &str| testkit::not_run("ext4: the_mounted_image_equals_the_tree", why);
    let tools = ["mount", "umount", "tar", "e2fsck"];
    if let Some(tool) = tools.iter().find(|tool| Program::new(tool).is_err()) {
        return not_run(&format!("{tool} is not installed"));
    }
    if !rustix::process::geteuid().is_root() {
        return not_run("mounting needs root");
    }
    let (dir, store) = store();
    let root = dir.path().join("root");
    let mounted = dir.path().join("mounted");
    fs::create_dir(&root).unwrap();
    fs::create_dir(&mounted).unwrap();
    if let Err(error) = Program::new("sh").unwrap().args(["-c", MAKE_ODD_ROOT, "sh"]).arg(&root).run() {
        return not_run(&format!("this file system does not hold the odd tree: {error}"));
    }
    if let Err(error) = add_xattrs(&root) {
        return not_run(&format!("this file system does not hold extended attributes: {error}"));
    }
    for sparse in [&[][..], &["--sparse", "--sparse-version=1.0"], &["--sparse", "--sparse-version=0.1"]] {
        let tar = dir.path().join("root.tar");
        let program = Program::new("tar").unwrap().args(["--format=posix", "--numeric-owner", "--xattrs"]);
        let program = program.args(["--xattrs-include=*"]).args(sparse).arg("-cf").arg(&tar);
        program.arg("-C").arg(&root).arg(".").run().unwrap();
        let image = import_tar(&store, File::open(&tar).unwrap(), "test", &Silent).unwrap();
        Program::new("e2fsck").unwrap().arg("-fn").arg(image.path()).run().unwrap();
        let mount = Program::new("mount").unwrap().args(["-o", "loop,ro,noload"]).arg(image.path());
        if let Err(error) = mount.arg(&mounted).run() {
            return not_run(&format!("loop mounts do not work here: {error}"));
        }
        let found = walk(&mounted);
        Program::new("umount").unwrap().arg(&mounted).run().unwrap();
        let expected = walk(&root);
        assert_eq!(found.len(), expected.len());
        for (path, expected) in &expected {
            assert!(found[path] == *expected, "{} differs ({sparse:?})", path.escape_ascii());
        }
    }
}
