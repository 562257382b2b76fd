//! What a daemon would make of this host: the disks of new VMs, and whether VMs outlive the logout. Asked are those who
//! decide it.

use banger_proto::doctor::Finding;
use banger_proto::error::chain;
use banger_sys::command::{CommandError, Program};
use banger_sys::paths::Paths;

use crate::ports::RootDisks;
use crate::scope::UserSystemd;
use crate::wiring;

/// How the root disks of new VMs are made.
pub(super) fn disks(paths: &Paths) -> Finding {
    // One that is not there will be on the file system of the nearest one that is.
    let state = paths.state.ancestors().find(|dir| dir.is_dir()).unwrap_or(&paths.state);
    let strategy = wiring::disks(state).strategy();
    let what = match strategy {
        "reflink" => "files that share the data of their image",
        "qcow2" => "overlays over their image",
        _ => "copies of their image without its holes",
    };
    Finding::fine("disks", format!("disks of new VMs are {what} ({strategy})"))
}

/// Whether VMs go on when the user logs out.
pub(super) fn logout() -> Finding {
    judge(UserSystemd::detect().map(|_| lingers().map_err(|error| chain(&error).join(": "))))
}

/// What logind says of the user (loginctl(1)).
fn lingers() -> Result<String, CommandError> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let asked = Program::new("loginctl")?.args(["show-user", &uid, "--property=Linger", "--value"]).run()?;
    Ok(String::from_utf8_lossy(&asked.stdout).trim().to_owned())
}

/// `linger` is what logind says, where a systemd of the user's runs.
fn judge(linger: Option<Result<String, String>>) -> Finding {
    let (id, mend) = ("logout", "loginctl enable-linger");
    match linger.as_ref().map(|said| said.as_deref()) {
        None => Finding::fine(
            id,
            "no systemd of yours can be reached: VMs outlive the logout unless logind kills what is left of a session",
        ),
        Some(Ok("yes")) => Finding::fine(id, "VMs outlive the logout: your systemd lingers"),
        Some(Ok("no")) => {
            Finding::warning(id, "your systemd ends with your last session, and the VMs with it", mend)
        }
        Some(Ok(other)) => {
            let text = format!(
                "whether VMs outlive the logout cannot be told: loginctl says '{}'",
                other.escape_debug()
            );
            Finding::warning(id, text, mend)
        }
        Some(Err(error)) => {
            Finding::warning(id, format!("whether VMs outlive the logout cannot be told: {error}"), mend)
        }
    }
}

#[cfg(test)]
mod tests {
    use banger_proto::doctor::Verdict;

    use super::*;

    #[test]
    fn vms_outlive_the_logout_where_systemd_lingers() {
        let of = |said: &str| Some(Ok(said.to_owned()));
        for (linger, verdict, words) in [
            (None, Verdict::Ok, "unless logind kills"),
            (of("yes"), Verdict::Ok, "your systemd lingers"),
            (of("no"), Verdict::Warning, "ends with your last session"),
            (of("\u{1b}"), Verdict::Warning, "loginctl says '\\u{1b}'"),
            (Some(Err("it is gone".to_owned())), Verdict::Warning, "cannot be told: it is gone"),
        ] {
            let found = judge(linger);
            assert_eq!(found.verdict, verdict, "{found:?}");
            assert!(found.message.contains(words), "{found:?}");
            let mend = (verdict == Verdict::Warning).then_some("loginctl enable-linger");
            assert_eq!(found.mend.as_deref(), mend);
        }
    }
}
