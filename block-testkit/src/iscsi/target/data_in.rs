//! Data-In: the answer of a read, cut to segments and bursts, its status with the last one (RFC 7143,
//! section 11.7).

use block_core::range::{to_u64, to_usize};
use block_iscsi::pdu::Pdu;
use block_iscsi::pdu::data::{DataIn, DataInEnd, Sequence};
use block_iscsi::pdu::fields::{DataLen, ResponseSerials};
use block_iscsi::serial::Serial;

use super::command::{Head, residual};
use super::output::Output;
use super::session::Session;
use crate::iscsi::Blocks;

/// Where an answer's bytes are.
pub(super) enum Source<'a> {
    Bytes(&'a [u8]),
    Blocks(Blocks<'a>),
}

impl Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => to_u64(bytes.len()),
            Self::Blocks(blocks) => blocks.len(),
        }
    }

    fn append(&self, start: u32, len: u32, to: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => {
                let (start, len) = (to_usize(start.into()), to_usize(len.into()));
                to.extend_from_slice(bytes.get(start..start + len).unwrap_or_default());
            }
            Self::Blocks(blocks) => blocks.append_to(start.into(), len.into(), to),
        }
    }
}

impl Session {
    /// Answers a command that succeeded and has data.
    pub(super) fn answer_read(&mut self, head: &Head, source: Source<'_>, out: &mut Output) {
        let (moved, residual) = residual(source.len(), head.expected_in);
        let (mut at, mut data_sn) = (0, Serial::new(0));
        let mut burst = 0;
        loop {
            let room = self.agreed.max_burst_len - burst;
            let len = self.agreed.max_send_data_segment_len.min(room).min(moved - at);
            let last = at + len == moved;
            burst = (burst + len) % self.agreed.max_burst_len;
            let end = match (last, burst) {
                (true, _) => DataInEnd::Status { status: 0, residual },
                (false, 0) => DataInEnd::Open(Sequence::Ends),
                (false, _) => DataInEnd::Open(Sequence::GoesOn),
            };
            let serials = if last {
                self.take_serials()
            } else {
                ResponseSerials { stat_sn: Serial::new(0), ..self.serials() }
            };
            let pdu = DataIn {
                end,
                acknowledge: None,
                task_tag: head.tag,
                serials,
                data_sn,
                buffer_offset: at,
                data_len: DataLen::new(len).unwrap_or(DataLen::MAX),
            };
            out.put_with(&pdu.to_bytes(), |bytes| source.append(at, len, bytes));
            if last {
                return;
            }
            at += len;
            data_sn = data_sn.next();
        }
    }
}
