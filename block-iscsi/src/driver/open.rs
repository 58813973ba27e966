//! Opening: what the unit is, and whether it can be served.

use std::sync::Arc;

use block_core::error::{Error, OpenError, Problem};
use block_core::options::OpenFlags;

use crate::allocmap::{PAGE_BYTES_MAX, PAGE_BYTES_MIN, PageGrid};
use crate::nexus::Nexus;
use crate::scsi::capacity::Capacity;
use crate::scsi::inquiry::{self, Inquiry, Qualifier, SupportedPages};
use crate::scsi::limits::{BlockLimits, ByteLimits};
use crate::scsi::luns::Lun;
use crate::scsi::mode::{ModeData, ModePage};
use crate::scsi::provisioning::{Provisioning, UnmappedReads};
use crate::scsi::{AnswerError, Problem as AnswerProblem};
use crate::unit::{Retries, Sleep, Unit, UnitError};

use super::NAME;

/// Length of a page where the unit names no granularity that is of use.
const PAGE_BYTES_DEFAULT: u64 = 64 << 10;
/// Pages are longer on a medium that would have more than this many: their two sets then take 64 MiB
/// at the most.
const PAGES_WANTED: u64 = 1 << 28;

/// How to open a unit.
#[derive(Clone)]
pub struct UnitOptions {
    /// The unit.
    pub lun: Lun,
    /// `writable`, and `direct`: others may write meanwhile.
    pub flags: OpenFlags,
    /// What users know it by, for messages.
    pub filename: String,
    /// How often commands are tried.
    pub retries: Retries,
}

/// What was found out when the unit was opened.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) inquiry: Inquiry,
    pub(super) serial: Option<String>,
    pub(super) capacity: Capacity,
    pub(super) limits: ByteLimits,
    pub(super) provisioning: Option<Provisioning>,
    /// Unmapped blocks read as zeroes, and the unit can tell which those are.
    pub(super) reads_zeroes: bool,
    /// FUA is known.
    pub(super) dpofua: bool,
    /// Writes may end before the medium has them.
    pub(super) write_cache: bool,
    pub(super) write_protected: bool,
}

impl Facts {
    /// The pages of the allocation map; `None` if there can be no map.
    pub(super) fn grid(&self, len: u64) -> Option<PageGrid> {
        let granule = self.limits.write_same_granule;
        let unmap = self.limits.unmapping.and_then(|unmapping| unmapping.granule);
        let mut grid = PageGrid::new(PAGE_BYTES_DEFAULT);
        if let Some(granule) = unmap.or(granule).filter(|g| g.len.bytes() <= PAGE_BYTES_MAX) {
            let unit = granule.len.bytes();
            let times = if unit < PAGE_BYTES_MIN { PAGE_BYTES_DEFAULT.div_ceil(unit) } else { 1 };
            grid = PageGrid { len: unit * times, origin: granule.offset };
        }
        while len / grid.len >= PAGES_WANTED && grid.len * 2 <= PAGE_BYTES_MAX {
            grid.len *= 2;
        }
        self.reads_zeroes.then_some(grid)
    }
}

/// Asks the unit for everything that the driver has to know.
pub(super) async fn probe(
    nexus: Arc<dyn Nexus>,
    sleep: Arc<dyn Sleep>,
    options: &UnitOptions,
) -> Result<(Arc<Unit>, Facts), OpenError> {
    let unit = Unit::new(nexus, options.lun, sleep, options.retries);
    let failed = |what| move |error| refused(what, error);
    let inquiry = unit.inquiry().await.map_err(failed("INQUIRY"))?;
    check_kind(&inquiry)?;
    unit.test_ready().await.map_err(failed("TEST UNIT READY"))?;
    let capacity = unit.capacity().await.map_err(failed("READ CAPACITY"))?;
    let pages = unless_refused(unit.supported_pages().await).map_err(failed("VPD page 00"))?;
    let has = |page| pages.as_ref().is_some_and(|pages: &SupportedPages| pages.has(page));
    let mut facts = Facts {
        inquiry,
        serial: None,
        capacity,
        limits: limits(None, &capacity)?,
        provisioning: None,
        reads_zeroes: false,
        dpofua: false,
        write_cache: true,
        write_protected: false,
    };
    if has(inquiry::PAGE_SERIAL) {
        // Nothing depends on it.
        facts.serial = unit.serial().await.ok();
    }
    if has(inquiry::PAGE_LIMITS) {
        let found = unless_refused(unit.block_limits().await).map_err(failed("VPD page B0"))?;
        facts.limits = limits(found, &capacity)?;
    }
    if has(inquiry::PAGE_PROVISIONING) {
        let found = unless_refused(unit.provisioning().await);
        facts.provisioning = found.map_err(failed("VPD page B2"))?;
    }
    facts.reads_zeroes = reads_zeroes(&capacity, facts.provisioning.as_ref());
    if let Some(mode) = mode(&unit).await.map_err(failed("MODE SENSE"))? {
        facts.write_protected = mode.write_protected;
        facts.dpofua = mode.dpofua;
        facts.write_cache = mode.caching.is_none_or(|caching| caching.write_cache);
    }
    if facts.write_protected && options.flags.writable {
        let path = options.filename.clone().into();
        return Err(OpenError::File { path, error: Error::Os(libc::EROFS) });
    }
    Ok((unit, facts))
}

/// Refuses what is no disk.
fn check_kind(inquiry: &Inquiry) -> Result<(), OpenError> {
    let names = match inquiry.qualifier {
        Qualifier::Present if inquiry.is_disk() => return Ok(()),
        Qualifier::Present => format!("devices of type {:#04x}", inquiry.device_type),
        Qualifier::Absent | Qualifier::Impossible => "a LUN without a device".to_owned(),
        Qualifier::Other(code) => format!("peripheral qualifier {code:#x}"),
    };
    Err(OpenError::UnsupportedFeature { format: NAME, names })
}

/// Whether what is not mapped reads as zeroes. READ CAPACITY (16) has one bit for it. Page B2 has three
/// in SBC-4, of which only the lowest means zeroes; where the others are set alone, it is
/// another pattern, whatever the one bit says.
pub(super) fn reads_zeroes(capacity: &Capacity, provisioning: Option<&Provisioning>) -> bool {
    let management = capacity.management;
    let zeroes = match provisioning.map(|page| page.unmapped_reads) {
        Some(UnmappedReads::Zeroes) => true,
        Some(UnmappedReads::Pattern | UnmappedReads::Other(_)) => false,
        Some(UnmappedReads::Anything) | None => management.reads_zeroes,
    };
    management.managed && zeroes
}

/// The mode pages: all of them, or the caching page alone; `None` if the unit has neither.
async fn mode(unit: &Unit) -> Result<Option<ModeData>, UnitError> {
    match unless_refused(unit.mode(ModePage::All).await)? {
        Some(mode) => Ok(Some(mode)),
        None => unless_refused(unit.mode(ModePage::Caching).await),
    }
}

/// Limits in bytes, of a unit that may have no page of them.
fn limits(page: Option<BlockLimits>, capacity: &Capacity) -> Result<ByteLimits, OpenError> {
    let silent = BlockLimits {
        write_same_needs_len: false,
        max_compare_and_write: None,
        transfer_granularity: None,
        max_transfer: None,
        opt_transfer: None,
        max_unmap_blocks: None,
        max_unmap_descriptors: None,
        unmap_granularity: None,
        max_write_same: None,
    };
    let limits = page.unwrap_or(silent).in_bytes(capacity.block_size());
    limits.map_err(wrong_answer)
}

/// What the unit does not know is not there.
fn unless_refused<T>(result: Result<T, UnitError>) -> Result<Option<T>, UnitError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_refusal() => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn refused(what: &'static str, error: UnitError) -> OpenError {
    match error {
        UnitError::Answer { error, .. } => wrong_answer(error),
        error => OpenError::Request { what, error: error.into() },
    }
}

/// An answer that cannot be used, in the words of those who open.
fn wrong_answer(error: AnswerError) -> OpenError {
    let (field, value, problem) = match error {
        AnswerError::Truncated { what, len, needed } => {
            let [len, needed] = [len, needed].map(block_core::range::to_u64);
            (what, len, Problem::Below(needed))
        }
        AnswerError::Field { field, value, problem } => (field, value, problem_of(problem)),
    };
    OpenError::Field { format: NAME, field, value, problem }
}

fn problem_of(problem: AnswerProblem) -> Problem {
    match problem {
        AnswerProblem::Zero => Problem::Zero,
        AnswerProblem::TooLarge { limit } => Problem::Above(limit),
        AnswerProblem::TooSmall { limit } => Problem::Below(limit),
        AnswerProblem::NotPowerOfTwo => Problem::NotPowerOfTwo,
        AnswerProblem::NotMultiple { unit } => Problem::Misaligned(unit),
        AnswerProblem::Unexpected { .. } | AnswerProblem::Reserved => Problem::Unknown,
    }
}
