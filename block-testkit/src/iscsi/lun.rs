//! A logical unit: what it is like, what it holds, who has reserved it, who must be told what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::check::Check;
use super::copy::Copied;
use super::device::Nexus;
use super::mode::Mode;
use super::reserve::Reservations;
use super::sanitize::Sanitizing;
use super::store::Store;

/// What blocks that are not mapped read as.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Unmapped {
    /// Zeroes (LBPRZ is 1).
    Zeroes,
    /// Something that is not zero (LBPRZ is 0).
    Junk,
}

/// How blocks get their places.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Provisioning {
    /// Each has one.
    Thick,
    /// Each gets one when it is written. Unmapping takes whole granules only, which begin at
    /// `alignment` and every `granularity` blocks from there.
    Thin {
        /// What the others read as.
        unmapped: Unmapped,
        /// Length of a granule in blocks; at least one.
        granularity: u32,
        /// Where the first granule begins; less than `granularity`.
        alignment: u32,
    },
}

/// Whether the medium can be written.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// It can.
    ReadWrite,
    /// It is write protected.
    ReadOnly,
}

/// Whether the medium can be taken out.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Medium {
    /// It cannot.
    Fixed,
    /// It can.
    Removable,
}

/// What WRITE SAME does if it names no blocks.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NoBlocks {
    /// It is refused (WSNZ is 1).
    Refused,
    /// It writes to the end of the unit.
    ToTheEnd,
}

/// What a logical unit is like. Lengths are in blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LunConfig {
    /// Length of a block in bytes: 512 or 4096.
    pub block_size: u32,
    /// How many blocks; at least one.
    pub blocks: u64,
    /// How many blocks are a physical block, as an exponent of two; at most 15.
    pub physical_exponent: u8,
    /// How blocks get their places.
    pub provisioning: Provisioning,
    /// Whether it can be written.
    pub access: Access,
    /// Whether its medium can be taken out.
    pub medium: Medium,
    /// Its serial number, printable, at most 20 bytes.
    pub serial: String,
    /// Longest READ or WRITE.
    pub max_transfer: u32,
    /// Longest WRITE SAME.
    pub max_write_same: u32,
    /// What a WRITE SAME of no blocks is.
    pub no_blocks: NoBlocks,
    /// Most blocks of one UNMAP.
    pub max_unmap_blocks: u32,
    /// Most descriptors of one UNMAP.
    pub max_unmap_descriptors: u32,
    /// How many commands are refused before a SANITIZE has ended. With zero it ends when it begins.
    pub sanitize_steps: u32,
}

/// Why a unit cannot be like this.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither 512 nor 4096.
    #[error("a block of {0} bytes")]
    BlockSize(u32),
    /// No blocks, or more than `i64::MAX` bytes.
    #[error("a unit of {0} blocks")]
    Blocks(u64),
    /// More than four bits can say.
    #[error("a physical block of 2^{0} blocks")]
    Physical(u8),
    /// A granularity of zero, or an alignment that is not less.
    #[error("a granularity of {granularity} blocks with an alignment of {alignment}")]
    Granularity {
        /// Blocks of a granule.
        granularity: u32,
        /// Where the first one begins.
        alignment: u32,
    },
    /// A limit of zero.
    #[error("a limit of zero blocks")]
    Limit,
    /// Too long or not printable.
    #[error("a serial number of {0} bytes")]
    Serial(usize),
    /// The number is taken, or more than flat addressing can say.
    #[error("the number {0}")]
    Number(u16),
}

impl LunConfig {
    /// A unit where each block has its place.
    pub fn thick(block_size: u32, blocks: u64) -> Self {
        Self {
            block_size,
            blocks,
            physical_exponent: 0,
            provisioning: Provisioning::Thick,
            access: Access::ReadWrite,
            medium: Medium::Fixed,
            serial: "testkit-1".to_owned(),
            max_transfer: (16 << 20) / block_size.max(1),
            max_write_same: 1 << 22,
            no_blocks: NoBlocks::Refused,
            max_unmap_blocks: u32::MAX,
            max_unmap_descriptors: 256,
            sanitize_steps: 0,
        }
    }

    /// A thin unit that unmaps single blocks, which then read as zeroes.
    pub fn thin(block_size: u32, blocks: u64) -> Self {
        let (unmapped, granularity, alignment) = (Unmapped::Zeroes, 1, 0);
        let provisioning = Provisioning::Thin { unmapped, granularity, alignment };
        Self { provisioning, ..Self::thick(block_size, blocks) }
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !matches!(self.block_size, 512 | 4096) {
            return Err(ConfigError::BlockSize(self.block_size));
        }
        self.check_blocks(self.blocks)?;
        if self.physical_exponent > 15 {
            return Err(ConfigError::Physical(self.physical_exponent));
        }
        if let Provisioning::Thin { granularity, alignment, .. } = self.provisioning
            && alignment >= granularity
        {
            return Err(ConfigError::Granularity { granularity, alignment });
        }
        let unmap = [self.max_unmap_blocks, self.max_unmap_descriptors];
        if unmap.contains(&0) || [self.max_transfer, self.max_write_same].contains(&0) {
            return Err(ConfigError::Limit);
        }
        if self.serial.len() > 20 || !self.serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ConfigError::Serial(self.serial.len()));
        }
        Ok(())
    }

    fn check_blocks(&self, blocks: u64) -> Result<(), ConfigError> {
        let most = (u64::MAX >> 1) / u64::from(self.block_size);
        if blocks == 0 || blocks > most {
            return Err(ConfigError::Blocks(blocks));
        }
        Ok(())
    }
}

/// A logical unit.
#[derive(Debug)]
pub(super) struct Lun {
    pub(super) config: LunConfig,
    pub(super) store: Store,
    pub(super) reservations: Reservations,
    /// Whether the medium is in.
    pub(super) medium_present: bool,
    /// Who prevents that it is taken out.
    pub(super) preventing: BTreeSet<Nexus>,
    pub(super) mode: Mode,
    /// The mode after a reset.
    pub(super) default_mode: Mode,
    pub(super) sanitizing: Sanitizing,
    /// How copies ended, by their list identifiers.
    pub(super) copies: BTreeMap<(Nexus, u8), Copied>,
    /// What each nexus that is connected has not been told yet.
    attentions: BTreeMap<Nexus, VecDeque<(u8, u8)>>,
}

impl Lun {
    pub(super) fn new(config: LunConfig, mode: Mode) -> Result<Self, ConfigError> {
        config.check()?;
        let store = Store::new(config.block_size);
        Ok(Self {
            config,
            store,
            reservations: Reservations::default(),
            medium_present: true,
            preventing: BTreeSet::new(),
            mode,
            default_mode: mode,
            sanitizing: Sanitizing::default(),
            copies: BTreeMap::new(),
            attentions: BTreeMap::new(),
        })
    }

    pub(super) fn is_thin(&self) -> bool {
        self.config.provisioning != Provisioning::Thick
    }

    /// Whether blocks that are not mapped read as zeroes.
    pub(super) fn reads_zeroes(&self) -> bool {
        matches!(self.config.provisioning, Provisioning::Thin { unmapped: Unmapped::Zeroes, .. })
    }

    pub(super) fn resize(&mut self, blocks: u64) -> Result<(), ConfigError> {
        self.config.check_blocks(blocks)?;
        self.config.blocks = blocks;
        self.store.truncate(blocks);
        Ok(())
    }

    /// Will tell `nexus`; the same thing is told once.
    pub(super) fn tell(&mut self, nexus: Nexus, code: (u8, u8)) {
        let waiting = self.attentions.entry(nexus).or_default();
        if !waiting.contains(&code) {
            waiting.push_back(code);
        }
    }

    /// The next thing that `nexus` must be told.
    pub(super) fn take_attention(&mut self, nexus: Nexus) -> Option<Check> {
        self.attentions.get_mut(&nexus)?.pop_front().map(Check::attention)
    }

    /// Whether there is something that `nexus` must be told.
    pub(super) fn has_attention(&self, nexus: Nexus) -> bool {
        self.attentions.get(&nexus).is_some_and(|waiting| !waiting.is_empty())
    }

    /// Tells all that are connected but `nexus`.
    pub(super) fn tell_others(&mut self, nexus: Nexus, code: (u8, u8)) {
        let others: Vec<_> =
            self.attentions.keys().copied().filter(|other| *other != nexus).collect();
        for other in others {
            self.tell(other, code);
        }
    }

    /// Forgets what `nexus` was to be told, and what ends with its session.
    pub(super) fn forget(&mut self, nexus: Nexus) {
        self.attentions.remove(&nexus);
        self.preventing.remove(&nexus);
        self.copies.retain(|(owner, _), _| *owner != nexus);
    }

    /// The unit was reset. Registrations stay, and a SANITIZE goes on.
    pub(super) fn reset(&mut self) {
        self.reservations.reset();
        self.preventing.clear();
        self.mode = self.default_mode;
        self.copies.clear();
    }
}
