//! Who belongs to a command: the process groups of its session, as /proc tells them.

use rustix::process::Pid;

/// The process groups of the session that `leader` leads, its own first.
pub(crate) fn of_session(leader: Pid) -> Vec<Pid> {
    let mut groups = vec![leader];
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else { continue };
        if let Some((group, session)) = group_and_session(&stat)
            && session == leader.as_raw_nonzero().get()
            && let Some(group) = Pid::from_raw(group)
            && !groups.contains(&group)
        {
            groups.push(group);
        }
    }
    groups
}

/// Fields 5 and 6 of `/proc/PID/stat` (proc(5)). The name in parentheses may hold any byte.
fn group_and_session(stat: &[u8]) -> Option<(i32, i32)> {
    let stat = String::from_utf8_lossy(stat);
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_any_name() {
        assert_eq!(group_and_session(b"12 (a) b) (c) S 1 34 56 0 -1"), Some((34, 56)));
        assert_eq!(group_and_session(b"12 (caf\xe9) S 1 34 56 0 -1"), Some((34, 56)));
        assert_eq!(group_and_session(b"12 (x) S 1"), None);
        assert_eq!(group_and_session(b""), None);
    }

    #[test]
    fn the_leaders_group_is_always_among_them() {
        let me = rustix::process::getpid();
        assert!(of_session(me).contains(&me));
    }
}
