//! Debian's archive as the source of packages: what a program that fetches from it may see of its caller's environment.
//! The lines of sources.list and the recipes of images are in [`banger_proto::catalog`].

use std::collections::BTreeMap;
use std::ffi::OsString;

use banger_proto::catalog::KEPT_VARIABLES;
pub use banger_proto::catalog::{KEYRING, sources};

/// The variables of an environment that a fetching program may see, with a PATH and a locale of ours.
pub fn kept(environment: impl IntoIterator<Item = (OsString, OsString)>) -> BTreeMap<OsString, OsString> {
    let known = |name: &OsString| KEPT_VARIABLES.iter().any(|kept| name == kept);
    let mut env: BTreeMap<OsString, OsString> =
        environment.into_iter().filter(|(name, _)| known(name)).collect();
    env.insert("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    env.insert("LC_ALL".into(), "C.UTF-8".into());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_cleared_but_for_proxies() {
        let env = [("http_proxy", "http://p:1"), ("LD_PRELOAD", "x"), ("PATH", "/evil")];
        let env = kept(env.map(|(name, value)| (name.into(), value.into())));
        let names: Vec<&str> = env.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["LC_ALL", "PATH", "http_proxy"]);
        assert!(!env.values().any(|value| value == "/evil"));
    }
}
