//! Whether a file is a VMDK, from its first bytes.

use crate::descriptor;
use crate::spec::sparse;

const COWD_MAGIC: &[u8] = b"COWD";

/// How a VMDK file starts.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A hosted sparse extent (`KDMV`), perhaps with the descriptor inside.
    HostedSparse,
    /// A sparse extent of ESX (`COWD`).
    Cowd,
    /// A text descriptor.
    Descriptor,
}

/// Which kind of VMDK file starts with `head`; `None` if none does.
///
/// `head` may be cut anywhere: a descriptor is known by its first setting, `version=` 1 to 3, before
/// which only blank lines and comments stand.
pub fn probe(head: &[u8]) -> Option<FileKind> {
    if head.starts_with(&sparse::MAGIC) {
        Some(FileKind::HostedSparse)
    } else if head.starts_with(COWD_MAGIC) {
        Some(FileKind::Cowd)
    } else if descriptor::starts_a_descriptor(head) {
        Some(FileKind::Descriptor)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let cases: [(&[u8], _); 10] = [
            (b"KDMV\x01\0\0\0", Some(FileKind::HostedSparse)),
            (b"COWD\x01\0\0\0", Some(FileKind::Cowd)),
            (b"# Disk DescriptorFile\nversion=1\nCI", Some(FileKind::Descriptor)),
            (b"\r\n#x\r\n \r\nversion = 3\r\n", Some(FileKind::Descriptor)),
            (b"# Disk DescriptorFile\nversion=4\n", None),
            (b"# Disk DescriptorFile\nversion=11\n", None),
            (b"# Disk DescriptorFile\nCID=1\nversion=1\n", None),
            (b"# a shell script\necho version=1\n", None),
            (b"KDM", None),
            (b"", None),
        ];
        for (head, expected) in cases {
            assert_eq!(probe(head), expected, "{}", head.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(head in prop::collection::vec(any::<u8>(), 0..600)) {
            probe(&head);
        }
    }
}
