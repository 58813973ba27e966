//! What the files of a new image are called.
//!
//! Invariant: every name is plain (no directory, no quotes), and no file beside the image has its name.

use std::fmt;
use std::path::Path;

use block_core::OpenError;
use block_core::error::Problem;

use super::options::refuse;
use crate::descriptor::{CreateType, Quoted};

/// Longest plain name that file systems take, in bytes.
const NAME_MAX: usize = 255;

/// The name of an image without its directory, in two parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Names {
    stem: String,
    /// From the last dot on; empty without one.
    suffix: String,
}

impl Names {
    /// The names of an image at `path`.
    pub(super) fn of_image(path: &str) -> Result<Self, OpenError> {
        let bad = || refuse("filename", path, Problem::NotPlainName);
        let plain = path.strip_prefix("file:").unwrap_or(path);
        let name = Path::new(plain).file_name().and_then(|name| name.to_str()).ok_or_else(bad)?;
        let (stem, suffix) = name.split_at(name.rfind('.').unwrap_or(name.len()));
        let names = Self { stem: stem.to_owned(), suffix: suffix.to_owned() };
        // No name of an extent is longer than with a number of the most digits.
        let longest = names.with("-s4294967295").filter(|name| name.as_str().len() <= NAME_MAX);
        longest.map(|_| names).ok_or_else(bad)
    }

    /// The name of the extent of this `number`, counted from 1. An image whose only extent has the
    /// descriptor inside is its own extent.
    pub(super) fn extent(&self, create_type: CreateType, number: u64) -> Option<Quoted> {
        match create_type {
            CreateType::MonolithicSparse | CreateType::StreamOptimized => self.with(""),
            CreateType::MonolithicFlat | CreateType::Vmfs => self.with("-flat"),
            CreateType::TwoGbMaxExtentSparse => self.with(&format!("-s{number:03}")),
            CreateType::TwoGbMaxExtentFlat => self.with(&format!("-f{number:03}")),
            CreateType::VmfsSparse => self.with("-delta"),
            CreateType::SeSparse => self.with("-sesparse"),
        }
    }

    fn with(&self, part: &str) -> Option<Quoted> {
        Quoted::new(format!("{}{part}{}", self.stem, self.suffix))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.stem, self.suffix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str, create_type: CreateType, number: u64) -> String {
        let names = Names::of_image(path).unwrap();
        names.extent(create_type, number).unwrap().as_str().to_owned()
    }

    #[test]
    fn extents_are_called_after_the_image() {
        use CreateType as T;
        assert_eq!(name("dir.d/a.vmdk", T::MonolithicSparse, 1), "a.vmdk");
        assert_eq!(name("/x/a.b.vmdk", T::MonolithicFlat, 1), "a.b-flat.vmdk");
        assert_eq!(name("a", T::MonolithicFlat, 1), "a-flat");
        assert_eq!(name(".vmdk", T::Vmfs, 1), "-flat.vmdk");
        assert_eq!(name("file:a.vmdk", T::TwoGbMaxExtentFlat, 7), "a-f007.vmdk");
        assert_eq!(name("a.vmdk", T::TwoGbMaxExtentSparse, 1024), "a-s1024.vmdk");
        assert_eq!(name("a.vmdk", T::VmfsSparse, 1), "a-delta.vmdk");
        assert_eq!(name("nbd://host/a.vmdk", T::MonolithicSparse, 1), "a.vmdk");
    }

    #[test]
    fn names_that_are_not_plain_are_refused() {
        for path in ["", "..", "/", "a/..", "a\"b.vmdk", "a\nb.vmdk", &"a".repeat(250)] {
            let error = Names::of_image(path).unwrap_err().to_string();
            assert!(error.ends_with("only plain names are allowed here"), "{path}: {error}");
        }
    }
}
