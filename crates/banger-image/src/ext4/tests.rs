//! Whole archives, good and hostile, against the importer; e2fsck and debugfs are the judges of its images.

mod mounted;

use std::fs;
use std::io::Write;
use std::path::Path;

use banger_sys::command::Program;

use super::*;
use crate::Silent;
use crate::progress::Unwanted;

type Pax<'a> = &'a [(&'a str, &'a [u8])];

/// An archive being written, one raw entry after the other.
struct Archive(Vec<u8>);

impl Archive {
    fn entry(&mut self, kind: u8, path: &[u8], link: &[u8], content: &[u8], pax: Pax<'_>) -> &mut Self {
        if !pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in pax {
                let body = key.len() + value.len() + 3;
                let length = (body..).find(|length| body + length.to_string().len() == *length).unwrap();
                records.extend(format!("{length} {key}=").into_bytes());
                records.extend(*value);
                records.push(b'\n');
            }
            self.raw(b'x', b"pax", b"", &records);
        }
        self.raw(kind, path, link, content)
    }

    fn raw(&mut self, kind: u8, path: &[u8], link: &[u8], content: &[u8]) -> &mut Self {
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.entry(b'0', path.as_bytes(), b"", content, &[])
    }

    fn end(&self) -> Vec<u8> {
        [&self.0[..], &[0; 1024]].concat()
    }
}

fn archive() -> Archive {
    Archive(Vec::new())
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// The message of a refusal, after which the store has nothing.
fn refused(bytes: &[u8]) -> String {
    refused_within(bytes, &Limits::MACHINE)
}

fn refused_within(bytes: &[u8], limits: &Limits) -> String {
    let (dir, store) = store();
    let error = import_within(&store, bytes, || Ok(true), "test", &Silent, limits).unwrap_err();
    for place in ["staging", "images"] {
        assert_eq!(fs::read_dir(dir.path().join(place)).unwrap().count(), 0, "{place}");
    }
    let chain: Vec<String> = banger_proto::error::chain(&error);
    chain.join(": ")
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let cases = [
        (archive().file("../evil", b"x").end(), "'../evil' is refused: its path leads out"),
        (archive().file("a/../../evil", b"x").end(), "its path leads out"),
        (archive().file("/etc/evil", b"x").end(), "'/etc/evil' is refused: its path is absolute"),
        (
            archive().entry(b'2', b"d", b"/etc", b"", &[]).file("d/evil", b"x").end(),
            "'d/evil' is refused: 'd' in its path is a symbolic link",
        ),
        (
            archive()
                .entry(b'2', b"a", b"b", b"", &[])
                .entry(b'2', b"b", b"a", b"", &[])
                .file("a/x", b"")
                .end(),
            "'a' in its path is a symbolic link",
        ),
        (
            archive().entry(b'1', b"h", b"../../etc/shadow", b"", &[]).end(),
            "'../../etc/shadow' that it links to",
        ),
        (archive().entry(b'1', b"h", b"h", b"", &[]).end(), "the entry 'h' that it links to is not there"),
        (archive().entry(b'D', b"dump", b"", b"", &[]).end(), "entries of type 'D' are not read"),
        (archive().file("lost+found", b"x").end(), "lost+found in the root belongs"),
        (
            archive().entry(b'0', b"f", b"", b"", &[("uid", b"4294967296")]).end(),
            "its uid 4294967296 is too large",
        ),
        (archive().entry(b'0', b"f", b"", b"", &[("mtime", b"99999999999")]).end(), "its time is outside"),
        (
            archive().entry(b'0', b"f", b"", b"", &[("SCHILY.xattr.system.posix_acl_access", b"no")]).end(),
            "'f' is refused: its system.posix_acl_access is no ACL",
        ),
        (
            archive().entry(b'0', b"f", b"", b"", &[("SCHILY.xattr.user.a", &[0; 5000])]).end(),
            "its extended attributes do not fit",
        ),
        (
            archive()
                .entry(b'0', b"f", b"", b"abc", &[("GNU.sparse.map", b"0,3,1,3"), ("GNU.sparse.size", b"9")])
                .end(),
            "its sparse map has no order",
        ),
    ];
    for (bytes, expected) in cases {
        let error = refused(&bytes);
        assert!(error.contains(expected), "{error}\n instead of {expected}");
    }
}

#[test]
fn a_huge_extension_header_is_refused_before_it_is_read() {
    let mut bytes = archive().raw(b'x', b"pax", b"", b"").0.clone();
    let mut header = ::tar::Header::new_ustar();
    header.as_mut_bytes().copy_from_slice(&bytes[..512]);
    header.set_size(8 << 30);
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    let error = refused(&bytes);
    assert!(error.contains("extended header has 8589934592 bytes"), "{error}");
}

#[test]
fn every_cut_of_an_archive_is_noticed() {
    let bytes = archive().file("a", &[0; 1500]).file("b", b"content").end();
    for length in (0..bytes.len()).step_by(256).chain([bytes.len() - 1]) {
        let error = refused(&bytes[..length]);
        assert!(error.contains("cut short") || error.contains("empty"), "{length}: {error}");
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    let gzip = gzip.finish().unwrap();
    for length in 1..gzip.len() {
        refused(&gzip[..length]);
    }
    assert!(
        refused(b"this is no archive, but it is long enough to be one".repeat(20).as_slice())
            .contains("no tar")
    );
}

#[test]
fn bombs_end_at_the_limits() {
    let small = Limits { stream: 1 << 20, data: 64 << 10, file: 1 << 30, entries: 10 };
    let mut many = archive();
    for number in 0..11 {
        many.file(&number.to_string(), b"");
    }
    assert!(
        refused_within(&many.end(), &small).contains("'10' is refused: the archive has more than 10 entries")
    );
    let large = archive().file("large", &vec![1; 65 << 10]).end();
    assert!(
        refused_within(&large, &small).contains("'large' is refused: the archive has more than 64 KiB of")
    );
    let tail = [archive().file("a", b"x").end(), vec![0; 2 << 20]].concat();
    let tail = refused_within(&zstd::encode_all(&tail[..], 1).unwrap(), &small);
    assert!(tail.contains("more than 1 MiB when decompressed"), "{tail}");
    let headers = archive().raw(b'L', b"long", b"", b"name").0.repeat(2000);
    let headers = refused_within(&headers, &small);
    assert!(headers.contains("more than 1 MiB when decompressed"), "{headers}");
    let pax = archive()
        .raw(b'x', b"pax", b"", format!("600001 a={}\n", "x".repeat(599_991)).as_bytes())
        .0
        .repeat(2);
    assert!(refused(&pax).contains("extended header has 600001 bytes"), "{}", refused(&pax));
    let sparse: Pax<'_> = &[("GNU.sparse.map", b"0,0"), ("GNU.sparse.size", b"2000000000")];
    let sparse = archive().entry(b'0', b"holes", b"", b"", sparse).end();
    assert!(refused_within(&sparse, &small).contains("'holes' is refused: a file of 2000000000 bytes"));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(2000))]

    /// Whatever is changed in an archive, the reader ends with a tree or an error, within its limits.
    #[test]
    fn damaged_archives_end_in_a_tree_or_an_error(
        changes in proptest::collection::vec((0usize..20_000, proptest::num::u8::ANY), 0..12),
        mend in proptest::bool::ANY,
    ) {
        let mut bytes = odd_archive();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
            // With its checksum mended a header's damage gets past the first check.
            let start = at - at % 512;
            if mend && bytes[start + 257..start + 262] == *b"ustar" {
                let mut header = ::tar::Header::new_ustar();
                header.as_mut_bytes().copy_from_slice(&bytes[start..start + 512]);
                header.set_cksum();
                bytes[start..start + 512].copy_from_slice(header.as_bytes());
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path()).unwrap();
        let small = Limits { stream: 1 << 20, data: 1 << 20, file: 1 << 30, entries: 100 };
        if let Ok(tree) = read_archive(&bytes[..], &mut spool, &small, &Silent, |_| true) {
            proptest::prop_assert!(tree.len() <= 200);
        }
    }
}

#[test]
fn cancelling_leaves_nothing() {
    let (dir, store) = store();
    let bytes = archive().file("a", b"x").end();
    assert!(matches!(import_tar(&store, &bytes[..], "test", &Unwanted), Err(ImportError::Cancelled)));
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn the_same_archive_gives_the_same_image_however_it_is_compressed() {
    let bytes = odd_archive();
    let zstd = zstd::encode_all(&bytes[..], 1).unwrap();
    let images = [&bytes, &zstd].map(|bytes| {
        let (dir, store) = store();
        (import_tar(&store, &bytes[..], "test", &Silent).unwrap(), dir)
    });
    assert_eq!(images[0].0.digest(), images[1].0.digest());
    assert_eq!(images[0].0.size(), ByteSize::mib(1024));
    assert!(images[0].0.disk_used().unwrap() < ByteSize::mib(16));
    let other = archive().file("other", b"x").end();
    let (_dir, store) = store();
    let other = import_tar(&store, &other[..], "test", &Silent).unwrap();
    assert_ne!(other.digest(), images[0].0.digest());
}

#[test]
fn without_its_writers_yes_an_archive_is_no_image() {
    let (dir, store) = store();
    let bytes = odd_archive();
    for end in [bytes.len(), bytes.len() / 2, 0] {
        let error = import_tar_confirmed(&store, &bytes[..end], || Ok(false), "test", &Silent).unwrap_err();
        assert!(matches!(error, ImportError::NotComplete), "{end}: {error}");
    }
    let error = import_tar_confirmed(&store, &bytes[..0], || Ok(true), "test", &Silent).unwrap_err();
    assert!(matches!(error, ImportError::Archive(TarError::Empty)), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    assert!(store.images().unwrap().is_empty());
}

/// Everything that the writer can hold, read back by the writer's own reader: what needs no privilege.
#[test]
fn owners_modes_times_and_contents_come_out_as_they_went_in() {
    let (_dir, store) = store();
    let image = import_tar(&store, &odd_archive()[..], "test", &Silent).unwrap();
    let found = debugfs(&image.path(), "stat /dir/f");
    let Some(found) = found else { return };
    for text in ["User:     7   Group:     8", "Mode:  0644", "Links: 2", "mtime: 0x6553f100:1d6f3450"] {
        assert!(found.contains(text), "{text} in\n{found}");
    }
    let found = debugfs(&image.path(), "stat /null").unwrap();
    assert!(found.contains("Type: character special") && found.contains("01:03"), "{found}");
    let found = debugfs(&image.path(), "stat /before").unwrap();
    assert!(found.contains("1969"), "{found}");
    assert_eq!(debugfs(&image.path(), "cat /dir/f").unwrap(), "content\n");
}

fn odd_archive() -> Vec<u8> {
    let mut holes = vec![1; 4096];
    holes.extend([2; 4096]);
    archive()
        .entry(b'5', b"./", b"", b"", &[])
        .entry(b'5', b"./lost+found", b"", b"", &[])
        .entry(b'5', b"./dir", b"", b"", &[("SCHILY.xattr.user.dir", b"a\nb")])
        .entry(b'0', b"dir/f", b"", b"content\n", &[("mtime", b"1700000000.123456788")])
        .entry(b'1', b"link", b"./dir/f", b"", &[])
        .entry(b'2', b"sym", b"dir/f", b"", &[])
        .entry(b'2', b"long", &[b'x'; 100], b"", &[])
        .entry(b'3', b"null", b"", b"", &[])
        .entry(b'6', b"fifo", b"", b"", &[])
        .entry(b'0', b"short", b"", b"", &[("path", &[b'n'; 255])])
        .entry(b'0', b"before", b"", b"", &[("mtime", b"-0.5")])
        .entry(b'0', b"\xff\xfe", b"", b"", &[])
        .entry(
            b'0',
            b"holes",
            b"",
            &holes,
            &[("GNU.sparse.map", b"40960,4096,81920,4096"), ("GNU.sparse.size", b"1000000")],
        )
        .entry(
            b'0',
            b"zeros",
            b"",
            &[0; 10_000],
            &[(
                "SCHILY.xattr.security.capability",
                &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            )],
        )
        .end()
}

/// What debugfs says about an image; `None` where there is no debugfs, which is told.
fn debugfs(image: &Path, request: &str) -> Option<String> {
    let Ok(program) = Program::new("debugfs") else {
        testkit::not_run("ext4: what debugfs reads", "debugfs is not installed");
        return None;
    };
    let output = program.args(["-R", request]).arg(image).run().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn e2fsck_finds_nothing_to_mend() {
    let Ok(program) = Program::new("e2fsck") else {
        return testkit::not_run("ext4: e2fsck_finds_nothing_to_mend", "e2fsck is not installed");
    };
    let (_dir, store) = store();
    let image = import_tar(&store, &odd_archive()[..], "test", &Silent).unwrap();
    program.arg("-fn").arg(image.path()).run().unwrap();
}

#[test]
fn an_ext4_file_is_registered_and_other_files_are_refused() {
    let (dir, store) = store();
    let made = import_tar(&store, &odd_archive()[..], "test", &Silent).unwrap();
    let original = File::open(made.path()).unwrap();
    let image = register(&store, &original, "copy", &Silent).unwrap();
    assert_eq!(image.digest(), made.digest());
    assert!(image.disk_used().unwrap() < ByteSize::mib(16), "holes stay holes");

    let path = dir.path().join("cut");
    fs::write(&path, &fs::read(made.path()).unwrap()[..1 << 20]).unwrap();
    let refused = |file: File| register(&store, &file, "x", &Silent).unwrap_err().to_string();
    assert!(refused(File::open(&path).unwrap()).contains("the file 1048576 bytes"));
    fs::write(&path, [0; 4096]).unwrap();
    assert!(refused(File::open(&path).unwrap()).contains("no ext4 superblock"));
    fs::write(&path, b"short").unwrap();
    assert!(refused(File::open(&path).unwrap()).contains("only 5 bytes"));
    assert!(refused(File::open(dir.path()).unwrap()).contains("no regular file"));
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
}
