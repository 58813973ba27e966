//! Changes of an image's own options: what may change, and in which order.
//!
//! Everything is refused before anything is changed, as far as it can be told without reading the
//! tables. Each step leaves a whole image: the order is version up, refcounts, flags and names, length,
//! version down.
//!
//! Not here: the version ([`version`]), the width of refcounts ([`refcount_width`]); another backing file,
//! which is a rebase.

mod refcount_width;
mod version;

use std::sync::Arc;

use async_trait::async_trait;
use block_core::ability::{Amend, ProgressSink};
use block_core::driver::Prealloc;
use block_core::error::Problem;
use block_core::io::exec::to_the_end;
use block_core::range::to_u64;
use block_core::{Error, OpenError, Options, Result};

use crate::driver::Qcow2Driver;
use crate::geometry::{L2Format, MAX_REFCOUNT_ORDER, Version};
use crate::spec::extension::MAX_DATA_FILE_NAME;
use crate::spec::header::Compression;

/// What is to change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Changes {
    version: Option<Version>,
    refcount_order: Option<u32>,
    lazy_refcounts: Option<bool>,
    size: Option<u64>,
    data_file: Option<String>,
    data_file_raw: Option<bool>,
    backing_file: Option<String>,
    backing_format: Option<String>,
}

impl Changes {
    /// Takes them from `options`; refuses what is not known or never changes.
    fn take(mut options: Options) -> Result<Self, OpenError> {
        let version = match options.take("compat").as_deref() {
            None => None,
            Some("0.10" | "v2") => Some(Version::V2),
            Some("1.1" | "v3") => Some(Version::V3),
            Some(other) => return Err(refuse("compat", other, Problem::Unknown)),
        };
        let refcount_order = match options.take("refcount_bits") {
            None => None,
            Some(text) => Some(refcount_order(&text)?),
        };
        let changes = Self {
            version,
            refcount_order,
            lazy_refcounts: options.take_bool("lazy_refcounts")?,
            size: options.take_size("size")?,
            data_file: options.take("data_file"),
            data_file_raw: options.take_bool("data_file_raw")?,
            backing_file: options.take("backing_file"),
            backing_format: options.take("backing_fmt"),
        };
        match options.iter().next() {
            None => Ok(changes),
            Some((name, value)) => {
                Err(refuse(name, value, Problem::Contradicts("an image that exists already")))
            }
        }
    }

    /// Refuses what the image cannot become.
    fn check(&self, image: &Qcow2Driver) -> Result<(), OpenError> {
        let (geometry, features) =
            image.header.with(|parts| (parts.header.geometry, parts.header.features));
        let version = self.version.unwrap_or(geometry.version());
        if version == Version::V2 {
            let v2 = Problem::Contradicts("version 2 of the format");
            if self.lazy_refcounts == Some(true) {
                return Err(refuse("lazy_refcounts", "on", v2));
            }
            if let Some(order) = self.refcount_order.filter(|order| *order != 4) {
                return Err(refuse("refcount_bits", &(1u64 << order).to_string(), v2));
            }
        }
        if version < geometry.version() {
            self.check_downgrade(image)?;
        }
        let resized = self.size.is_some_and(|size| size != image.disk_len());
        if resized && !image.lists.read().snapshots.is_empty() && version == Version::V2 {
            return Err(refuse_name("size", Problem::Contradicts("snapshots of version 2")));
        }
        if let Some(size) = self.size.filter(|size| !size.is_multiple_of(512)) {
            return Err(refuse("size", &size.to_string(), Problem::Misaligned(512)));
        }
        if let Some(name) = &self.data_file {
            if !features.data_file {
                let problem = Problem::Contradicts("an image without a data file");
                return Err(refuse("data_file", name, problem));
            }
            if name.is_empty() || to_u64(name.len()) > MAX_DATA_FILE_NAME {
                return Err(refuse("data_file", name, Problem::Above(MAX_DATA_FILE_NAME)));
            }
        }
        if self.data_file_raw == Some(true) && !features.raw_data_file {
            // What is in the data file by now need not be what the disk reads.
            let problem = Problem::Contradicts("an image without it");
            return Err(refuse("data_file_raw", "on", problem));
        }
        self.check_backing(image)
    }

    /// Refuses another backing file: what the disk reads there would change, and nothing here compares the two.
    fn check_backing(&self, image: &Qcow2Driver) -> Result<(), OpenError> {
        let (name, format) = image
            .header
            .with(|parts| (parts.backing_name.clone(), parts.extensions.backing_format.clone()));
        let own = Problem::Contradicts("the image's own, which only a rebase changes");
        if self.backing_file.as_ref().is_some_and(|n| n.as_bytes() != name.unwrap_or_default()) {
            return Err(refuse_name("backing_file", own));
        }
        if self.backing_format.as_ref().is_some_and(|f| *f != format.unwrap_or_default()) {
            return Err(refuse_name("backing_fmt", own));
        }
        Ok(())
    }

    /// Refuses version 2 for an image that it cannot hold.
    fn check_downgrade(&self, image: &Qcow2Driver) -> Result<(), OpenError> {
        let (header, lists) = (image.header.with(|parts| parts.header.clone()), image.lists.read());
        let len = self.size.unwrap_or(image.disk_len());
        let order = self.refcount_order.unwrap_or(header.geometry.refcount_bits().ilog2());
        let another = |own: Option<u64>| own.is_some_and(|own| own != len);
        let reasons = [
            (order != 4, "refcounts that are not of 16 bits"),
            (header.features.data_file, "the data file"),
            (header.geometry.l2_format() == L2Format::Extended, "extended L2 entries"),
            (header.compression != Compression::Deflate, "the compression type"),
            (!lists.bitmaps.is_empty(), "persistent bitmaps"),
            (lists.snapshots.iter().any(|s| another(s.disk_len)), "snapshots of other lengths"),
            (
                lists.snapshots.iter().any(|s| s.vm_state_size > u32::MAX.into()),
                "snapshots of large machine states",
            ),
        ];
        match reasons.into_iter().find(|(is_so, _)| *is_so) {
            None => Ok(()),
            Some((_, what)) => Err(refuse("compat", "0.10", Problem::Contradicts(what))),
        }
    }
}

fn refcount_order(text: &str) -> Result<u32, OpenError> {
    let bits = text.parse::<u64>().map_err(|_| refuse("refcount_bits", text, Problem::Unknown))?;
    let problem = match bits {
        bits if !bits.is_power_of_two() => Problem::NotPowerOfTwo,
        bits if bits > 1 << MAX_REFCOUNT_ORDER => Problem::Above(1 << MAX_REFCOUNT_ORDER),
        bits => return Ok(bits.ilog2()),
    };
    Err(refuse("refcount_bits", text, problem))
}

/// An error that says which option, and which value of it.
fn refuse(name: &str, value: &str, problem: Problem) -> OpenError {
    OpenError::Option { option: format!("{name}={value}"), problem }
}

fn refuse_name(name: &str, problem: Problem) -> OpenError {
    OpenError::Option { option: name.to_owned(), problem }
}

/// A failed request of an amendment.
fn failed(what: &'static str) -> impl Fn(Error) -> OpenError {
    move |error| OpenError::Request { what, error }
}

#[async_trait]
impl Amend for Qcow2Driver {
    async fn amend(&self, options: Options, progress: ProgressSink) -> Result<(), OpenError> {
        let changes = Changes::take(options)?;
        self.writer().map_err(failed("amend"))?;
        changes.check(self)?;
        let this = self.shared().map_err(failed("amend"))?;
        to_the_end(async move { this.make(&changes, &*progress).await }).await
    }
}

/// Told how far a change is.
type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

impl Qcow2Driver {
    async fn make(
        self: &Arc<Self>,
        changes: &Changes,
        progress: Progress<'_>,
    ) -> Result<(), OpenError> {
        self.amend_header(changes, progress).await?;
        if let Some(size) = changes.size.filter(|size| *size != self.disk_len()) {
            let resized = Arc::clone(self).resize(size, Prealloc::Off).await;
            self.after(resized).await.map_err(failed("size"))?;
        }
        if changes.version == Some(Version::V2) && self.geometry().version() == Version::V3 {
            let _exclusive = self.alone().await.map_err(failed("amend"))?;
            self.downgrade(progress).await?;
        }
        Ok(())
    }

    /// Everything that only makes the image able to do more, and names.
    async fn amend_header(
        &self,
        changes: &Changes,
        progress: Progress<'_>,
    ) -> Result<(), OpenError> {
        let _exclusive = self.alone().await.map_err(failed("amend"))?;
        self.clear_unknown().await.map_err(failed("header"))?;
        self.mark_unsure().await.map_err(failed("bitmap directory"))?;
        self.settle_all().await.map_err(failed("write-back"))?;
        if changes.version == Some(Version::V3) && self.geometry().version() == Version::V2 {
            self.upgrade().await?;
        }
        if let Some(order) = changes.refcount_order {
            self.change_refcount_width(order, progress).await?;
        }
        if let Some(name) = &changes.data_file {
            self.header.rewrite(|parts| parts.extensions.data_file = Some(name.clone())).await?;
        }
        let flags = self.header.update(|header| {
            if let Some(lazy) = changes.lazy_refcounts {
                header.features.lazy_refcounts = lazy;
            }
            if changes.data_file_raw == Some(false) {
                header.features.raw_data_file = false;
            }
        });
        flags.await.map_err(failed("header"))?;
        self.barrier().await.map_err(failed("header"))
    }

    /// Takes over a header that changes how tables are read.
    async fn adopt(&self) -> Result<(), OpenError> {
        self.read_again().await.map_err(failed("amended image"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(options: &[(&str, &str)]) -> Result<Changes, String> {
        let options = options.iter().fold(Options::new(), |all, (n, v)| all.with(*n, *v));
        Changes::take(options).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read_as_the_field_writes_them() {
        let changes = take(&[("compat", "v3"), ("refcount_bits", "64"), ("size", "1M")]).unwrap();
        assert_eq!(changes.version, Some(Version::V3));
        assert_eq!((changes.refcount_order, changes.size), (Some(6), Some(1 << 20)));
        assert_eq!(take(&[]).unwrap(), Changes::default());
    }

    #[test]
    fn what_never_changes_is_refused_by_name() {
        for (name, value) in [
            ("cluster_size", "65536"),
            ("preallocation", "full"),
            ("compression_type", "zstd"),
            ("extended_l2", "on"),
            ("compat", "1.0"),
            ("refcount_bits", "3"),
            ("refcount_bits", "128"),
            ("refcount_bits", "x"),
        ] {
            let error = take(&[(name, value)]).unwrap_err();
            assert!(error.contains(&format!("'{name}={value}'")), "{error}");
        }
    }
}
