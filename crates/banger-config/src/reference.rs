//! `docs/config.md`, made from the table of keys.

use crate::keys::{KEYS, Status};

/// The text of `docs/config.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         <!-- Made from crates/banger-config/src/keys.rs; a test compares. -->\n\n\
         banger reads `~/.config/banger/config.toml` (`banger config path` prints where it is). Every key is optional,\n\
         and a flag wins over the file. `banger config show` prints each value with where it came from, `banger config\n\
         check` only checks. A key that is not listed here is an error.\n\n\
         ```toml\n\
         default_image_name = \"debian-bookworm-minimal\"\n\
         stop_timeout = 10\n\n\
         [vm_defaults]\n\
         vcpu = 2\n\
         memory_mib = 2048\n\
         disk_size = \"20GiB\"\n\
         ```\n\n\
         | key | value | default | does |\n|---|---|---|---|\n",
    );
    for key in KEYS.iter().filter(|key| key.status == Status::Built) {
        text.push_str(&format!("| `{}` | {} | {} | {} |\n", key.name, key.value, key.default, key.doc));
    }
    text.push_str("\nThese are specified and not built yet; setting one is an error that says so:\n\n");
    for key in KEYS.iter().filter(|key| key.status == Status::NotBuilt) {
        text.push_str(&format!("- `{}`: {}\n", key.name, lower(key.doc)));
    }
    text.push_str("\nThese will belong to root's `/etc/banger/config.toml` alone:\n\n");
    for key in KEYS.iter().filter(|key| key.status == Status::RootOnly) {
        text.push_str(&format!("- `{}`: {}\n", key.name, lower(key.doc)));
    }
    text
}

fn lower(doc: &str) -> String {
    let doc = doc.trim_end_matches('.');
    let mut chars = doc.chars();
    chars.next().map(|first| first.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With `BANGER_BLESS=1` the file is written instead.
    #[test]
    fn the_documentation_is_current() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
        if std::env::var_os("BANGER_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, reference()).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, reference(), "run: BANGER_BLESS=1 cargo test -p banger-config");
    }
}
