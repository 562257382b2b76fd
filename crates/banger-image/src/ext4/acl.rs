//! POSIX ACLs: from the form in which the kernel gives them to programs, and tar carries them
//! (`include/uapi/linux/posix_acl_xattr.h`, version 2), to the form that ext4 keeps (`fs/ext4/acl.h`, version 1).

const WIRE_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
/// Tags whose entries name a user or a group: `ACL_USER` and `ACL_GROUP`.
const NAMED: [u16; 2] = [0x02, 0x08];
/// `ACL_USER_OBJ`, `ACL_GROUP_OBJ`, `ACL_MASK`, `ACL_OTHER`.
const UNNAMED: [u16; 4] = [0x01, 0x04, 0x10, 0x20];

/// The on-disk form of an ACL; `None` where it is none.
pub(crate) fn to_disk(wire: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = wire.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != WIRE_VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        if u16::from_le_bytes([entry[2], entry[3]]) > 7 {
            return None;
        }
        disk.extend_from_slice(&entry[..4]);
        if NAMED.contains(&tag) {
            disk.extend_from_slice(&entry[4..]);
        } else if !UNNAMED.contains(&tag) {
            return None;
        }
    }
    Some(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, permissions: u16, id: u32) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    }

    #[test]
    fn only_named_entries_keep_their_id() {
        let none = u32::MAX;
        let wire = [
            vec![2, 0, 0, 0],
            entry(0x01, 7, none),
            entry(0x02, 6, 1000),
            entry(0x04, 5, none),
            entry(0x10, 7, none),
            entry(0x20, 0, none),
        ]
        .concat();
        let disk = to_disk(&wire).unwrap();
        assert_eq!(disk[..4], [1, 0, 0, 0]);
        assert_eq!(disk.len(), 4 + 4 * 4 + 8);
        assert_eq!(disk[8..16], entry(0x02, 6, 1000));
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        let bad = [
            vec![],
            vec![1, 0, 0, 0],
            vec![2, 0, 0, 0, 1],
            [vec![2, 0, 0, 0], entry(0x40, 7, 0)].concat(),
            [vec![2, 0, 0, 0], entry(0x01, 8, 0)].concat(),
        ];
        for wire in bad {
            assert_eq!(to_disk(&wire), None, "{wire:?}");
        }
    }
}
