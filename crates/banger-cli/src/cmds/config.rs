//! `banger config`

use banger_config::{Config, Origin, Setting};
use clap::{Args, Subcommand};
use std::collections::BTreeMap;

use crate::context::Context;
use crate::doc::{self, SettingDoc, document};
use crate::error::CliError;

/// Show and check the configuration
///
/// One file in TOML, all of it optional; a flag wins over it. 'config show' prints every value with where it comes
/// from. The keys are described in docs/config.md.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "Examples:\n  banger config show\n  banger config check")]
pub(crate) enum Verb {
    Show(Show),
    /// Print where the file is looked for
    #[command(after_long_help = "Examples:\n  banger config path\n  cat \"$(banger config path)\"")]
    Path,
    /// Check the file; exit 1 if it is not usable
    #[command(after_long_help = "Examples:\n  banger config check")]
    Check,
}

/// Print every value and where it comes from
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger config show\n  banger config show --json")]
pub(crate) struct Show {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Show(show) => show.run(context),
            Self::Path => context.ui.line(context.paths.config.display()).map(|()| 0),
            Self::Check => {
                let config = context.config()?;
                let path = config.path.display();
                let text =
                    if config.exists { "is fine" } else { "does not exist, so everything has its default" };
                context.ui.line(format!("{path} {text}"))?;
                Ok(0)
            }
        }
    }
}

impl Show {
    fn run(self, context: &Context) -> Result<u8, CliError> {
        let config = context.config()?;
        let settings = settings(&config);
        if self.json {
            let settings: BTreeMap<_, _> =
                settings.into_iter().map(|(key, doc)| (key.to_owned(), doc)).collect();
            let path = config.path.display().to_string();
            context.ui.json(&document(doc::Configuration { path, exists: config.exists, settings }))?;
            return Ok(0);
        }
        let row = |(key, doc): (&str, SettingDoc)| {
            let absent = if key == "ssh_key_path" { "banger's own" } else { "the image's own" };
            vec![key.to_owned(), doc.value.unwrap_or_else(|| absent.to_owned()), doc.origin]
        };
        let rows = settings.into_iter().map(row).collect();
        context.ui.table(&["KEY", "VALUE", "FROM"], &[], rows)?;
        Ok(0)
    }
}

/// The keys whose values come from the file.
pub(super) fn set_by_file(config: &Config) -> Vec<&'static str> {
    let others = [Origin::Flag, Origin::Host, Origin::BuiltIn].map(|origin| origin.to_string());
    settings(config)
        .into_iter()
        .filter(|(_, doc)| !others.contains(&doc.origin))
        .map(|(key, _)| key)
        .collect()
}

fn settings(config: &Config) -> Vec<(&'static str, SettingDoc)> {
    fn one<T>(setting: &Setting<T>, value: impl Fn(&T) -> String) -> SettingDoc {
        SettingDoc { value: Some(value(&setting.value)), origin: setting.origin.to_string() }
    }
    let quoted = |text: &str| format!("\"{text}\"");
    let disk = config.disk.value.map(|size| format!("\"{}MiB\"", size.as_mib()));
    let ssh_key = config.ssh_key.value.as_ref().map(|path| quoted(&path.display().to_string()));
    vec![
        ("log_level", one(&config.log_level, |level| quoted(level.as_str()))),
        ("default_image_name", one(&config.image, |name| quoted(name.as_str()))),
        ("default_kernel_name", one(&config.kernel, |name| quoted(name.as_str()))),
        ("vmm", one(&config.vmm, |vmm| quoted(vmm.as_str()))),
        ("nat", one(&config.nat, ToString::to_string)),
        ("stop_timeout", one(&config.stop_timeout, ToString::to_string)),
        ("ssh_key_path", SettingDoc { value: ssh_key, origin: config.ssh_key.origin.to_string() }),
        ("vm_defaults.vcpu", one(&config.vcpus, ToString::to_string)),
        ("vm_defaults.memory_mib", one(&config.memory, |memory| memory.as_mib().to_string())),
        ("vm_defaults.disk_size", SettingDoc { value: disk, origin: config.disk.origin.to_string() }),
    ]
}

#[cfg(test)]
mod tests {
    use banger_config::keys::{KEYS, Status};
    use banger_config::{Config, Host};
    use banger_proto::ByteSize;

    #[test]
    fn every_usable_key_is_shown() {
        let host = Host { cpus: 4, memory: ByteSize::mib(4096) };
        let config = Config::parse("/c".as_ref(), "", host).unwrap();
        let shown: Vec<_> = super::settings(&config).into_iter().map(|(key, _)| key).collect();
        let usable: Vec<_> =
            KEYS.iter().filter(|key| key.status == Status::Built).map(|key| key.name).collect();
        assert_eq!(shown, usable);
    }
}
