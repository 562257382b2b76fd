//! The settings, typed, each with its origin.

use std::path::{Path, PathBuf};

use banger_proto::catalog::{DEFAULT_IMAGE, DEFAULT_KERNEL};
use banger_proto::{ByteSize, ImageName, KernelName, VmSpec};
use toml::de::DeValue;

use crate::file::{self, ConfigError, Found};
use crate::host::Host;

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This line of the configuration file.
    Config {
        /// 1 for the first.
        line: usize,
    },
    /// Derived from the host's size.
    Host,
    /// Nobody said anything.
    BuiltIn,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.pad("flag"),
            Self::Config { line } => f.pad(&format!("config, line {line}")),
            Self::Host => f.pad("host"),
            Self::BuiltIn => f.pad("built in"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

impl<T> Setting<T> {
    const fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }

    /// The flag's value where there is one, else this.
    #[must_use]
    pub fn or_flag(self, flag: Option<T>) -> Self {
        flag.map_or(self, |value| Self::new(value, Origin::Flag))
    }
}

/// How much the daemon logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The word in the file, as `tracing` understands it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Which VMM runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmChoice {
    /// The best one that the mode allows: in user mode QEMU.
    Auto,
    /// Firecracker.
    Firecracker,
    /// QEMU.
    Qemu,
}

impl VmmChoice {
    /// The word in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        }
    }
}

/// The configuration, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it is from, which need not exist.
    pub path: PathBuf,
    /// Whether the file exists.
    pub exists: bool,
    /// `log_level`.
    pub log_level: Setting<LogLevel>,
    /// `default_image_name`.
    pub image: Setting<ImageName>,
    /// `default_kernel_name`.
    pub kernel: Setting<KernelName>,
    /// `vmm`.
    pub vmm: Setting<VmmChoice>,
    /// `nat`.
    pub nat: Setting<bool>,
    /// `stop_timeout`, in seconds.
    pub stop_timeout: Setting<u32>,
    /// `ssh_key_path`, absolute or below `~/`; `None` is banger's own key.
    pub ssh_key: Setting<Option<PathBuf>>,
    /// `vm_defaults.vcpu`.
    pub vcpus: Setting<u32>,
    /// `vm_defaults.memory_mib`.
    pub memory: Setting<ByteSize>,
    /// `vm_defaults.disk_size`; `None` is the image's own size.
    pub disk: Setting<Option<ByteSize>>,
}

impl Config {
    /// The configuration of this file and this host. A file that does not exist is an empty one.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let host = Host::probe().map_err(ConfigError::Host)?;
        let text = file::read(path)?;
        let exists = text.is_some();
        let mut config = Self::parse(path, text.as_deref().unwrap_or_default(), host)?;
        config.exists = exists;
        Ok(config)
    }

    /// The same from a text; `path` is for messages.
    pub fn parse(path: &Path, text: &str, host: Host) -> Result<Self, ConfigError> {
        let mut config = Self::built_in(path, host)?;
        let problems = file::parse(text, |found| config.take(&found));
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid { path: path.to_owned(), problems })
        }
    }

    fn built_in(path: &Path, host: Host) -> Result<Self, ConfigError> {
        // The catalog's names are checked by its tests; an error here would be that defect, and is told as one.
        let defect = |error: banger_proto::name::BadName| ConfigError::Invalid {
            path: path.to_owned(),
            problems: vec![crate::Problem { line: 0, message: error.to_string() }],
        };
        Ok(Self {
            path: path.to_owned(),
            exists: true,
            log_level: Setting::new(LogLevel::Info, Origin::BuiltIn),
            image: Setting::new(DEFAULT_IMAGE.parse().map_err(defect)?, Origin::BuiltIn),
            kernel: Setting::new(DEFAULT_KERNEL.parse().map_err(defect)?, Origin::BuiltIn),
            vmm: Setting::new(VmmChoice::Auto, Origin::BuiltIn),
            nat: Setting::new(true, Origin::BuiltIn),
            stop_timeout: Setting::new(30, Origin::BuiltIn),
            ssh_key: Setting::new(None, Origin::BuiltIn),
            vcpus: Setting::new(host.vcpus(), Origin::Host),
            memory: Setting::new(host.memory(), Origin::Host),
            disk: Setting::new(None, Origin::BuiltIn),
        })
    }

    fn take(&mut self, found: &Found<'_>) -> Result<(), String> {
        let origin = Origin::Config { line: found.line };
        let value = found.value;
        match found.name {
            "log_level" => self.log_level = Setting::new(log_level(value)?, origin),
            "default_image_name" => self.image = Setting::new(parsed(value)?, origin),
            "default_kernel_name" => self.kernel = Setting::new(parsed(value)?, origin),
            "vmm" => self.vmm = Setting::new(vmm(value)?, origin),
            "nat" => self.nat = Setting::new(boolean(value)?, origin),
            "stop_timeout" => self.stop_timeout = Setting::new(integer(value, 1, 3600)?, origin),
            "ssh_key_path" => self.ssh_key = Setting::new(Some(home_path(value)?), origin),
            "vm_defaults.vcpu" => self.vcpus = Setting::new(integer(value, 1, VmSpec::MAX_VCPUS)?, origin),
            "vm_defaults.memory_mib" => {
                let least = u32::try_from(VmSpec::MIN_MEMORY.as_mib()).unwrap_or(u32::MAX);
                let mib = integer(value, least, u32::MAX)?;
                self.memory = Setting::new(ByteSize::mib(u64::from(mib)), origin);
            }
            "vm_defaults.disk_size" => self.disk = Setting::new(Some(size(value)?), origin),
            // A key of the table that nothing takes would be silently ignored; the test below finds it.
            other => return Err(format!("has no meaning here ({other})")),
        }
        Ok(())
    }
}

fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    match value {
        DeValue::String(text) => Ok(text.as_ref()),
        _ => Err("must be a text in quotes".to_owned()),
    }
}

fn parsed<T>(value: &DeValue<'_>) -> Result<T, String>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text(value)?.parse().map_err(|error: T::Err| format!("is not usable: {error}"))
}

fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err("must be true or false".to_owned()),
    }
}

fn integer(value: &DeValue<'_>, least: u32, most: u32) -> Result<u32, String> {
    let range = || match most {
        u32::MAX => format!("must be a whole number of at least {least}"),
        _ => format!("must be a whole number from {least} to {most}"),
    };
    match value {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(range),
        _ => Err(range()),
    }
}

fn size(value: &DeValue<'_>) -> Result<ByteSize, String> {
    match value {
        DeValue::String(_) => parsed(value),
        DeValue::Integer(_) => Ok(ByteSize::mib(u64::from(integer(value, 1, u32::MAX)?))),
        _ => Err("must be a size such as \"20GiB\"".to_owned()),
    }
}

/// A path that means the same to every process of the owner.
fn home_path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let text = text(value)?;
    if text.starts_with('/') || text.starts_with("~/") {
        return Ok(PathBuf::from(text));
    }
    Err("must be an absolute path, or begin with ~/".to_owned())
}

fn log_level(value: &DeValue<'_>) -> Result<LogLevel, String> {
    let word = text(value)?;
    LogLevel::ALL
        .into_iter()
        .find(|level| level.as_str() == word)
        .ok_or_else(|| "must be one of error, warn, info, debug, trace".to_owned())
}

fn vmm(value: &DeValue<'_>) -> Result<VmmChoice, String> {
    match text(value)? {
        "auto" => Ok(VmmChoice::Auto),
        "qemu" => Ok(VmmChoice::Qemu),
        "firecracker" => Ok(VmmChoice::Firecracker),
        _ => Err("must be \"auto\", \"firecracker\" or \"qemu\"".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KEYS, Status};

    const HOST: Host = Host { cpus: 8, memory: ByteSize::mib(16 * 1024) };

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/c.toml"), text, HOST).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_gives_the_host_and_the_built_in() {
        let config = parse("").unwrap();
        assert_eq!((config.vcpus.value, config.vcpus.origin), (2, Origin::Host));
        assert_eq!(config.memory.value, ByteSize::mib(2048));
        assert_eq!(config.image.value.as_str(), "debian-bookworm");
        assert_eq!(config.nat.origin, Origin::BuiltIn);
    }

    #[test]
    fn every_usable_key_is_taken() {
        let text = "log_level = \"debug\"\ndefault_image_name = \"a\"\ndefault_kernel_name = \"k\"\nvmm = \"qemu\"\n\
                    nat = false\nstop_timeout = 5\nssh_key_path = \"~/k\"\n[vm_defaults]\nvcpu = 3\nmemory_mib = 512\ndisk_size = \"4GiB\"\n";
        let config = parse(text).unwrap();
        assert_eq!(config.log_level.value, LogLevel::Debug);
        assert_eq!(config.vmm, Setting::new(VmmChoice::Qemu, Origin::Config { line: 4 }));
        assert_eq!(config.disk, Setting::new(Some(ByteSize::mib(4096)), Origin::Config { line: 11 }));
        assert_eq!(config.ssh_key.value, Some(PathBuf::from("~/k")));
        assert_eq!((config.vcpus.value, config.memory.value), (3, ByteSize::mib(512)));
        for key in KEYS.iter().filter(|key| key.status == Status::Built) {
            assert!(text.contains(key.name.rsplit('.').next().unwrap()), "{}", key.name);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("\nloglevel = 1", "/c.toml:2: unknown key 'loglevel'; did you mean 'log_level'?"),
            ("a = 1\nb = 2", "/c.toml:1: unknown key 'a'; /c.toml:2: unknown key 'b'"),
            ("disk_budget = \"1G\"", "/c.toml:1: 'disk_budget' is not built yet in this version of banger"),
            ("[[file_sync]]\nhost = \"x\"", "'file_sync' is not built yet"),
            ("cidr = \"10.0.0.0/8\"", "'cidr' belongs to root's /etc/banger/config.toml"),
            ("vmm = \"xen\"", "'vmm' must be \"auto\", \"firecracker\" or \"qemu\""),
            ("[vm_defaults]\nvcpu = 0", "/c.toml:2: 'vm_defaults.vcpu' must be a whole number from 1 to 288"),
            ("[vm_defaults]\nmemory_mib = \"1G\"", "must be a whole number of at least 128"),
            ("[vm_defaults]\ndisk_size = \"many\"", "is not usable: 'many' is not a size"),
            ("[vm_defaults]\ndisk = 1", "did you mean 'vm_defaults.disk_size'?"),
            ("vm_defaults = 3", "'vm_defaults' is a table: write [vm_defaults]"),
            ("ssh_key_path = \"id\"", "'ssh_key_path' must be an absolute path, or begin with ~/"),
            ("nat = \"yes\"", "'nat' must be true or false"),
            ("default_image_name = \"a/b\"", "the image name 'a/b' is not allowed"),
            ("nat = true\nnat = false", "/c.toml:2: duplicate key"),
            ("nat =", "/c.toml:1: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?} gives {error:?}");
        }
    }

    #[test]
    fn a_missing_file_is_empty_and_an_unreadable_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Config::load(&dir.path().join("none")).unwrap().exists);
        let error = Config::load(dir.path()).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }), "{error}");
        let large = dir.path().join("large");
        std::fs::write(&large, vec![b'#'; (1 << 20) + 1]).unwrap();
        assert!(matches!(Config::load(&large).unwrap_err(), ConfigError::Read { .. }));
    }
}
