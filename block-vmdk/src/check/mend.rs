//! Mending what a check found, in rounds: each walks the whole extent and mends one kind of thing.
//!
//! The order: header and footer; tables, their places and their entries ([`super::rewrite`]); then, where
//! no error is left, space that nothing refers to, the first free sector, and at last the mark that the file
//! was not closed. A flush stands between any two of these.
//!
//! Invariants: what a round writes is no worse at any moment than what was there; the parent's content id
//! is never changed here.

use block_core::ability::{CheckReport, Repair};
use block_core::driver::{Exactness, Prealloc};
use block_core::metadata::bytes::write_bytes;
use block_core::{Node, Result};

use super::examine::{Examined, Mending, examine};
use super::log::{Found, Log};
use super::rewrite::Changed;
use super::walk::Walk;
use super::{refused, sesparse};
use crate::extent::geometry::SECTOR;
use crate::extent::layout::Header;
use crate::spec::cowd;
use crate::spec::sparse::UNCLEAN_SHUTDOWN_AT;
use crate::units::Sector;

/// Most rounds of a repair. Each kind of damage takes two at most.
const MAX_ROUNDS: usize = 8;

/// Checks the sparse extent in `file`, and mends what `repair` allows.
pub(super) async fn check_file(
    file: &Node,
    repair: Repair,
    found: Found<'_>,
    prefix: &str,
) -> Result<CheckReport> {
    let examined = examine(file).await.map_err(refused)?;
    let mut log = Log::new(Some(found), prefix);
    if let Header::SeSparse(header) = &examined.layout.header {
        return sesparse::check(file, &examined.layout, header, log).await;
    }
    let walk = Walk::run(file, &examined, Log::new(Some(found), prefix)).await?;
    let (before, hopeless) = (walk.log.report, walk.faults.hopeless);
    if repair == Repair::Nothing || before == CheckReport::default() {
        return Ok(before);
    }
    let why = unmendable(file, &examined, &before);
    if let Some(why) = why.or(hopeless.then_some("the directory is where it cannot be")) {
        log.repaired(|| format!("nothing: {why}"));
        return Ok(before);
    }
    let mender = Mender { file, found, prefix };
    if repair == Repair::All {
        mender.mend_errors().await?;
    }
    mender.tidy(repair).await?;
    let examined = examine(file).await.map_err(refused)?;
    log = Log::new(Some(found), prefix);
    let mut after = Walk::run(file, &examined, log).await?.log.report;
    after.corruptions_fixed = before.corruptions.saturating_sub(after.corruptions);
    after.leaks_fixed = before.leaks.saturating_sub(after.leaks);
    Ok(after)
}

/// Why nothing is mended.
fn unmendable(file: &Node, examined: &Examined, before: &CheckReport) -> Option<&'static str> {
    let is_later = examined.layout.hosted().is_some_and(|header| header.version() == 3);
    if before.check_errors > 0 {
        Some("something cannot be read")
    } else if file.is_read_only() {
        Some("the file is open for reading only")
    } else if is_later && !examined.layout.is_compressed() {
        Some("an extent of version 3 is not written to")
    } else {
        None
    }
}

/// The repair of one file.
struct Mender<'a> {
    file: &'a Node,
    found: Found<'a>,
    prefix: &'a str,
}

impl<'a> Mender<'a> {
    /// Walks once more, silently; what is done afterwards is said.
    async fn walk<'b>(&'b self, examined: &'b Examined) -> Result<Walk<'b>>
    where
        'a: 'b,
    {
        let mut walk = Walk::run(self.file, examined, Log::new(None, "")).await?;
        let report = walk.log.report;
        walk.log = Log::new(Some(self.found), self.prefix);
        walk.log.report = report;
        Ok(walk)
    }

    async fn mend_errors(&self) -> Result<()> {
        for _ in 0..MAX_ROUNDS {
            let examined = examine(self.file).await.map_err(refused)?;
            if !examined.faults.is_empty() {
                self.mend_fixed(&examined).await?;
                continue;
            }
            let mut walk = self.walk(&examined).await?;
            if walk.log.report.corruptions == 0 || walk.log.report.check_errors > 0 {
                break;
            }
            let changed = walk.rewrite().await?;
            let markers = walk.faults.markers;
            if markers && changed == Changed::No {
                walk.write_markers().await?;
            } else if changed == Changed::No {
                break;
            }
        }
        Ok(())
    }

    /// Writes header and footer as they must be.
    async fn mend_fixed(&self, examined: &Examined) -> Result<()> {
        let Mending { header, end } = &examined.mending;
        let log = Log::new(Some(self.found), self.prefix);
        if let Some(header) = header {
            write_bytes(self.file, 0, header).await?;
            self.file.flush().await?;
            log.repaired(|| "the header was written anew".to_owned());
        }
        if let Some((place, bytes)) = end {
            let start = place.0 * SECTOR;
            write_bytes(self.file, start, bytes).await?;
            self.file.flush().await?;
            let len = start + block_core::range::to_u64(bytes.len());
            if self.file.len() > len {
                self.file.truncate(len, Exactness::AtLeast, Prealloc::Off).await?;
                self.file.flush().await?;
            }
            log.repaired(|| format!("the footer at sector {:#x} was written anew", place.0));
        }
        Ok(())
    }

    /// What remains to be done where there is no error: redundant tables, space, marks.
    async fn tidy(&self, repair: Repair) -> Result<()> {
        let examined = examine(self.file).await.map_err(refused)?;
        let mut walk = self.walk(&examined).await?;
        let has_errors = |walk: &Walk<'_>| {
            let report = walk.log.report;
            report.corruptions > 0 || report.check_errors > 0 || walk.faults.unfollowed
        };
        if has_errors(&walk) {
            walk.log.repaired(|| "no leaks, as damaged structures may refer to them".to_owned());
            return Ok(());
        }
        if !walk.differ.is_empty() || walk.faults.holes {
            walk.rewrite().await?;
        }
        if repair == Repair::All {
            self.compact(&examined).await?;
        }
        let walk = self.walk(&examined).await?;
        if has_errors(&walk) {
            return Ok(());
        }
        walk.cut_tail().await?;
        walk.write_free_sector().await?;
        if examined.unclean {
            self.clear_unclean(&examined).await?;
        }
        Ok(())
    }

    /// Fills space that nothing refers to with what is at the end of the file.
    async fn compact(&self, examined: &Examined) -> Result<()> {
        for _ in 0..MAX_ROUNDS {
            let tables = self.walk(examined).await?.move_tables().await?;
            let grains = self.walk(examined).await?.move_grains().await?;
            if (tables, grains) == (Changed::No, Changed::No) {
                break;
            }
        }
        Ok(())
    }

    /// Takes the mark away that the file was not closed, once everything else is stable.
    async fn clear_unclean(&self, examined: &Examined) -> Result<()> {
        let (at, len) = match &examined.layout.header {
            Header::Cowd(_) => (cowd::UNCLEAN_SHUTDOWN_AT, 4),
            _ => (UNCLEAN_SHUTDOWN_AT, 1),
        };
        self.file.flush().await?;
        write_bytes(self.file, block_core::range::to_u64(at), &[0; 4][..len]).await?;
        self.file.flush().await?;
        let log = Log::new(Some(self.found), self.prefix);
        log.repaired(|| "the file is marked as closed".to_owned());
        Ok(())
    }
}

impl Walk<'_> {
    /// Ends the file behind what is in use, if a grain would fit into the rest.
    async fn cut_tail(&self) -> Result<()> {
        let sectors = self.file.len().div_ceil(SECTOR);
        let end = self.used_end().max(self.overhead());
        let is_stream = self.examined.is_stream || self.examined.layout.is_compressed();
        let grows = self.file.capabilities().grows_on_write;
        if !grows || is_stream || sectors.saturating_sub(end) / self.grain() == 0 {
            return Ok(());
        }
        self.file.truncate(end * SECTOR, Exactness::AtLeast, Prealloc::Off).await?;
        self.file.flush().await?;
        self.log.repaired(|| format!("the file was cut from {sectors:#x} to {end:#x} sectors"));
        Ok(())
    }

    /// Writes the first free sector into a COWD header where it is behind.
    async fn write_free_sector(&self) -> Result<()> {
        let Some((free, end)) = self.stale_free_sector() else { return Ok(()) };
        let Header::Cowd(header) = &self.examined.layout.header else { return Ok(()) };
        let Some(header) = header.with_free_sector(Sector(end)) else { return Ok(()) };
        write_bytes(self.file, 0, &header.to_bytes()).await?;
        self.file.flush().await?;
        self.log.repaired(|| format!("freeSector was {free:#x}, is {end:#x}"));
        Ok(())
    }
}
