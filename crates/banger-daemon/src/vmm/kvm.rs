//! Hardware virtualisation: whether this host has it and VMs may use it.

use std::io::ErrorKind;

/// Whether KVM is usable, else why not, as the end of a sentence. Usable means that `/dev/kvm` opens and the processor has
/// vmx or svm: a paravirtual `/dev/kvm` exists without them but cannot run stock kernels.
pub(super) fn usable() -> Result<(), String> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop);
    // Unreadable means unknown, which counts as not there.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    decide(opened.map_err(|error| error.kind()), &cpuinfo)
}

fn decide(opened: Result<(), ErrorKind>, cpuinfo: &str) -> Result<(), String> {
    let virtualises = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm");
    Err(match (opened, virtualises) {
        (Ok(()), true) => return Ok(()),
        (Err(ErrorKind::NotFound), true) => {
            "there is no /dev/kvm: load the module with 'sudo modprobe kvm_intel' or 'sudo modprobe kvm_amd'"
                .to_owned()
        }
        (Err(ErrorKind::NotFound), false) => {
            "there is no /dev/kvm, and this processor shows neither vmx nor svm".to_owned()
        }
        // Being let in would not help.
        (_, false) => {
            "this processor shows neither vmx nor svm, so /dev/kvm cannot run an ordinary kernel".to_owned()
        }
        (Err(ErrorKind::PermissionDenied), true) => {
            "you may not open /dev/kvm: run 'sudo usermod -aG kvm $USER' and log in again".to_owned()
        }
        (Err(kind), true) => format!("/dev/kvm cannot be opened ({kind})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SVM: &str = "processor\t: 0\nflags\t\t: fpu svm lm\n";
    const NONE: &str = "processor\t: 0\nmodel name\t: svm vmx\nflags\t\t: fpu lm svm_lock\n";

    #[test]
    fn kvm_is_used_where_it_opens_and_the_processor_can() {
        assert_eq!(decide(Ok(()), SVM), Ok(()));
        for (opened, cpuinfo, word) in [
            (Ok(()), NONE, "neither vmx nor svm"),
            (Err(ErrorKind::NotFound), SVM, "modprobe"),
            (Err(ErrorKind::NotFound), NONE, "no /dev/kvm"),
            (Err(ErrorKind::PermissionDenied), SVM, "usermod"),
            (Err(ErrorKind::PermissionDenied), NONE, "neither vmx nor svm"),
            (Err(ErrorKind::Other), SVM, "cannot be opened"),
        ] {
            let why = decide(opened, cpuinfo).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }
}
