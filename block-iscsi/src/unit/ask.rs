//! The questions to a unit, and their answers as checked values.

use block_core::range::{to_u64, to_usize};

use crate::nexus::Data;
use crate::scsi::AnswerError;
use crate::scsi::capacity::{CAPACITY10_LEN, CAPACITY16_LEN, Capacity, Capacity10};
use crate::scsi::cdb::{Cdb, WhichLuns, WhichOpcodes};
use crate::scsi::inquiry::{Inquiry, SupportedPages};
use crate::scsi::limits::{BlockLimits, Characteristics};
use crate::scsi::luns::{Lun, parse_luns};
use crate::scsi::mode::{ModeData, ModePage};
use crate::scsi::opcodes::OneCommand;
use crate::scsi::provisioning::{LbaStatus, Provisioning};
use crate::scsi::{inquiry, opcodes};

use super::{Unit, UnitError, buffer};

/// Bytes that are first asked for where the length of an answer is not known.
const FIRST_LEN: usize = 252;
/// Longest answer that is asked for.
const ANSWER_LEN_MAX: usize = 1 << 20;

impl Unit {
    /// The answer to a command that gives at most `len` bytes.
    async fn answer(&self, cdb: Cdb, len: usize) -> Result<Vec<u8>, UnitError> {
        let buf = buffer(&cdb, len)?;
        let reply = self.execute(cdb, Data::In(buf.clone().into())).await?;
        let mut bytes = buf.to_vec();
        bytes.truncate(reply.received);
        Ok(bytes)
    }

    /// An answer of any length: asked for again, with more room, where it says that it is longer than
    /// `first` bytes, and refused beyond `max`.
    pub(super) async fn whole<T>(
        &self,
        first: usize,
        max: usize,
        cdb: impl Fn(usize) -> Cdb + Send + Sync,
        parse: impl Fn(&[u8]) -> Result<T, AnswerError> + Send + Sync,
    ) -> Result<T, UnitError> {
        let mut len = first;
        loop {
            let cdb = cdb(len);
            let bytes = self.answer(cdb, len).await?;
            match parse(&bytes) {
                Err(AnswerError::Truncated { needed, .. })
                    if needed > len && needed <= max && bytes.len() == len =>
                {
                    // Longer each time, so this ends.
                    len = needed;
                }
                parsed => {
                    let opcode = cdb.opcode();
                    return parsed.map_err(|error| UnitError::Answer { opcode, error });
                }
            }
        }
    }

    /// TEST UNIT READY.
    pub async fn test_ready(&self) -> Result<(), UnitError> {
        self.execute(Cdb::TestUnitReady, Data::None).await.map(|_| ())
    }

    /// Standard INQUIRY data.
    pub async fn inquiry(&self) -> Result<Inquiry, UnitError> {
        let cdb = |len| Cdb::Inquiry { allocation: short(len) };
        self.whole(96, U16_MAX, cdb, Inquiry::parse).await
    }

    /// A page of vital product data, read by `parse`.
    async fn page<T>(
        &self,
        page: u8,
        parse: impl Fn(&[u8]) -> Result<T, AnswerError> + Send + Sync,
    ) -> Result<T, UnitError> {
        let cdb = move |len| Cdb::InquiryPage { page, allocation: short(len) };
        self.whole(FIRST_LEN, U16_MAX, cdb, parse).await
    }

    /// Which pages of vital product data there are.
    pub async fn supported_pages(&self) -> Result<SupportedPages, UnitError> {
        self.page(inquiry::PAGE_SUPPORTED, SupportedPages::parse).await
    }

    /// The serial number.
    pub async fn serial(&self) -> Result<String, UnitError> {
        self.page(inquiry::PAGE_SERIAL, inquiry::parse_serial).await
    }

    /// Who the unit is.
    pub async fn designators(&self) -> Result<Vec<inquiry::Designator>, UnitError> {
        self.page(inquiry::PAGE_IDENTIFICATION, inquiry::Designator::parse_page).await
    }

    /// Page B0.
    pub async fn block_limits(&self) -> Result<BlockLimits, UnitError> {
        self.page(inquiry::PAGE_LIMITS, BlockLimits::parse).await
    }

    /// Page B1.
    pub async fn characteristics(&self) -> Result<Characteristics, UnitError> {
        self.page(inquiry::PAGE_CHARACTERISTICS, Characteristics::parse).await
    }

    /// Page B2.
    pub async fn provisioning(&self) -> Result<Provisioning, UnitError> {
        self.page(inquiry::PAGE_PROVISIONING, Provisioning::parse).await
    }

    /// READ CAPACITY (16); of a unit that does not know it, READ CAPACITY (10).
    pub async fn capacity(&self) -> Result<Capacity, UnitError> {
        let cdb = Cdb::ReadCapacity16 { allocation: CAPACITY16_LEN };
        let found = match self.answer(cdb, to_usize(CAPACITY16_LEN.into())).await {
            Ok(bytes) => Capacity::parse16(&bytes),
            Err(error) if error.is_refusal() => return self.capacity10().await,
            Err(error) => return Err(error),
        };
        found.map_err(|error| UnitError::Answer { opcode: cdb.opcode(), error })
    }

    async fn capacity10(&self) -> Result<Capacity, UnitError> {
        let cdb = Cdb::ReadCapacity10;
        let opcode = cdb.opcode();
        let bytes = self.answer(cdb, to_usize(CAPACITY10_LEN.into())).await?;
        match Capacity::parse10(&bytes).map_err(|error| UnitError::Answer { opcode, error })? {
            Capacity10::Known(capacity) => Ok(capacity),
            // It has more blocks than this can say, and no other way to say it.
            Capacity10::TooLarge => {
                let limit = u64::from(u32::MAX) - 1;
                let problem = crate::scsi::Problem::TooLarge { limit };
                let field = "RETURNED LOGICAL BLOCK ADDRESS";
                let error = AnswerError::field(field, u32::MAX.into(), problem);
                Err(UnitError::Answer { opcode, error })
            }
        }
    }

    /// MODE SENSE (6) of `page`; where that does not do, MODE SENSE (10).
    pub async fn mode(&self, page: ModePage) -> Result<ModeData, UnitError> {
        let cdb = Cdb::ModeSense6 { page, allocation: u8::MAX };
        match self.answer(cdb, usize::from(u8::MAX)).await {
            Ok(bytes) => {
                if let Ok(data) = ModeData::parse6(&bytes) {
                    return Ok(data);
                }
            }
            Err(error) if error.is_refusal() => {}
            Err(error) => return Err(error),
        }
        let cdb = |len| Cdb::ModeSense10 { page, allocation: short(len) };
        self.whole(FIRST_LEN, U16_MAX, cdb, ModeData::parse10).await
    }

    /// REPORT LUNS: the units of the target.
    pub async fn report_luns(&self) -> Result<Vec<Lun>, UnitError> {
        let which = WhichLuns::Ordinary;
        let cdb = |len| Cdb::ReportLuns { which, allocation: long(len) };
        self.whole(FIRST_LEN + 12, ANSWER_LEN_MAX, cdb, parse_luns).await
    }

    /// REPORT SUPPORTED OPERATION CODES: whether the unit knows one command.
    pub async fn knows(&self, which: WhichOpcodes) -> Result<OneCommand, UnitError> {
        let cdb = |len| Cdb::ReportOpcodes { which, allocation: long(len) };
        let most = opcodes::USAGE_LEN_MAX + 4;
        self.whole(most, most, cdb, OneCommand::parse).await
    }

    /// GET LBA STATUS from block `lba` on, of a medium of `blocks` blocks, in at most `descriptors`
    /// descriptors.
    pub async fn lba_status(
        &self,
        lba: u64,
        blocks: u64,
        descriptors: usize,
    ) -> Result<LbaStatus, UnitError> {
        let len = descriptors.saturating_mul(16).saturating_add(8).min(ANSWER_LEN_MAX);
        let cdb = Cdb::GetLbaStatus { lba, allocation: long(len) };
        let bytes = self.answer(cdb, len).await?;
        let parsed = LbaStatus::parse(&bytes, lba, blocks);
        parsed.map_err(|error| UnitError::Answer { opcode: cdb.opcode(), error })
    }

    /// SYNCHRONIZE CACHE (10) of the whole medium.
    pub async fn synchronize(&self) -> Result<(), UnitError> {
        self.execute(Cdb::SynchronizeCache10, Data::None).await.map(|_| ())
    }
}

const U16_MAX: usize = 0xffff;

fn short(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn long(len: usize) -> u32 {
    u32::try_from(to_u64(len)).unwrap_or(u32::MAX)
}
