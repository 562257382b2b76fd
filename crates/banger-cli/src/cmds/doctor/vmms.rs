//! Checks of what runs VMs: which VMM is chosen, and a Firecracker that is here.

use std::path::Path;

use banger_config::VmmChoice;
use banger_config::firecracker::{INSTALL, Version};
use banger_proto::doctor::Finding;
use banger_sys::command::{self, Program};

use crate::context::Context;

/// Which VMM runs VMs.
pub(super) fn chosen(context: &Context) -> Finding {
    let id = "vmm";
    // One that cannot be read is told by its own check.
    let choice = context.config().map_or(VmmChoice::Auto, |config| config.vmm.value);
    match choice {
        VmmChoice::Auto | VmmChoice::Qemu => {
            Finding::fine(id, format!("QEMU runs VMs in user mode (vmm = \"{}\")", choice.as_str()))
        }
        VmmChoice::Firecracker => Finding::failed(
            id,
            "vmm = \"firecracker\", whose network takes root: no VM starts in user mode",
            "write vmm = \"auto\" to the file that 'banger config path' names, then: banger daemon stop",
        ),
    }
}

/// A Firecracker that is here; none is needed.
pub(super) fn firecracker() -> Option<Finding> {
    let path = command::find("firecracker")?;
    let said = Program::new(&path.to_string_lossy()).and_then(|program| program.arg("--version").run());
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    Some(judge(&path, said.map_err(|error| error.to_string())))
}

fn judge(path: &Path, said: Result<String, String>) -> Finding {
    let (id, path) = ("firecracker", path.display());
    let version = match said.map(|said| Version::said(&said)) {
        Ok(Some(version)) => version,
        Ok(None) => return Finding::warning(id, format!("{path} is not Firecracker"), INSTALL),
        Err(error) => return Finding::warning(id, format!("{path} does not work: {error}"), INSTALL),
    };
    match version.check() {
        Ok(()) => Finding::fine(id, format!("{path} has version {version}; user mode does not use it")),
        Err(why) => Finding::warning(id, format!("{path} would be refused: {why}"), INSTALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firecracker_is_judged_by_its_version() {
        let told = |said: Result<&str, &str>| {
            let check = judge(Path::new("/fc"), said.map(str::to_owned).map_err(str::to_owned));
            format!("{} {:?}", check.message, check.mend)
        };
        assert!(told(Ok("Firecracker v1.16.1\n")).contains("/fc has version 1.16.1"));
        for (said, word) in [
            (Ok("Firecracker v1.15.0\n"), "CVE-2026-5747"),
            (Ok("hello"), "/fc is not Firecracker"),
            (Err("it ended"), "/fc does not work: it ended"),
        ] {
            let told = told(said);
            assert!(told.contains(word) && told.contains("1.15.1 or newer"), "{told}");
        }
    }
}
