//! A target that misbehaves: a filter over what it sends.
//!
//! A [`Script`] is a list of faults, each for the n-th PDU of a kind. What a fault does not name is as
//! the target made it, and after all faults the target is honest again, so that a recovery can be
//! tested. Digests are made anew, so that a wrong field is seen as what it is.

use std::collections::{BTreeMap, BTreeSet};

use block_core::range::to_usize;
use block_iscsi::pdu::Pdu;
use block_iscsi::pdu::bhs::{BHS_LEN, Bhs, Opcode};
use block_iscsi::pdu::digest::Part;
use block_iscsi::pdu::fields::{DataLen, ResponseSerials};
use block_iscsi::pdu::reject::{Reject, RejectReason};
use block_iscsi::serial::Serial;

use super::target::Link;

/// Commands that are remembered, to know what an answer is to.
const COMMANDS_MAX: usize = 4096;

/// Which PDUs of the target a fault is for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum On {
    /// Every one.
    Any,
    /// Those of a kind.
    Pdu(Opcode),
    /// Those that answer SCSI commands of this operation code.
    Answer(u8),
    /// The same, of a code and a service action.
    Action(u8, u8),
}

/// What is done to a PDU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// StatSN is so much more.
    StatSn(u32),
    /// ExpCmdSN and MaxCmdSN are so much more.
    Window {
        /// To ExpCmdSN.
        exp: u32,
        /// To MaxCmdSN.
        max: u32,
    },
    /// DataSN, or R2TSN, is so much more.
    DataSn(u32),
    /// The buffer offset is so much more.
    BufferOffset(u32),
    /// The desired length of an R2T, or the residual count, is so much more.
    Count(u32),
    /// These bits of the task tag are others.
    TaskTag(u32),
    /// These bits of byte `at` of the header are others.
    Header {
        /// Which byte.
        at: usize,
        /// Which bits.
        bits: u8,
    },
    /// The header says that the data has this length.
    Length(u32),
    /// So many bytes at the end of the data are not sent, and nothing says so.
    ShortData(usize),
    /// The data is something else. An underflow is counted as it is then.
    Data(Vec<u8>),
    /// It is sent twice.
    Twice,
    /// It is followed by so many that ask for the same again, with their own numbers.
    MoreR2ts(u32),
    /// It is sent after so many other PDUs of the connection.
    Late(u32),
    /// It is not sent.
    Swallow,
    /// Nothing is sent over the connection from this one on.
    Silence,
    /// The digest of this part is wrong, if there is one.
    Digest(Part),
    /// These bytes come before it.
    Garbage(Vec<u8>),
    /// The connection is cut when so many bytes of it are sent.
    Cut(usize),
    /// The request that it answers is rejected instead. What answers no SCSI command is swallowed.
    Reject(RejectReason),
}

impl Fault {
    /// An answer to GET LBA STATUS without a descriptor.
    pub fn empty_lba_status() -> Self {
        Self::Data(vec![0, 0, 0, 4, 0, 0, 0, 0])
    }

    /// An answer to GET LBA STATUS that says that `blocks` blocks from `lba` on are not mapped.
    pub fn lba_status(lba: u64, blocks: u32) -> Self {
        let mut data = vec![0, 0, 0, 20, 0, 0, 0, 0];
        data.extend(lba.to_be_bytes());
        data.extend(blocks.to_be_bytes());
        data.extend([1, 0, 0, 0]);
        Self::Data(data)
    }

    /// An answer to READ CAPACITY (16).
    pub fn capacity16(last_lba: u64, block_size: u32) -> Self {
        let mut data = last_lba.to_be_bytes().to_vec();
        data.extend(block_size.to_be_bytes());
        data.resize(32, 0);
        Self::Data(data)
    }
}

#[derive(Clone, Debug)]
struct Rule {
    on: On,
    /// How many PDUs it lets pass.
    skip: u64,
    fault: Fault,
}

/// What a target does wrong. See the module.
#[derive(Clone, Debug, Default)]
pub struct Script {
    rules: Vec<Rule>,
    /// Headers of SCSI commands, by their tags.
    commands: BTreeMap<(Link, u32), [u8; BHS_LEN]>,
    silent: BTreeSet<Link>,
    late: Vec<(Link, u32, Piece)>,
}

/// What is sent instead of a PDU.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// A PDU, with a digest that is to be wrong.
    Pdu { header: [u8; BHS_LEN], data: Vec<u8>, spoiled: Option<Part> },
    /// Bytes.
    Bytes(Vec<u8>),
    /// The connection is cut when so many bytes of the next piece are sent.
    Cut(usize),
}

impl Script {
    /// A script without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also does `fault` to the `nth` PDU that fits `on`; the first one has number 1.
    #[must_use]
    pub fn with(mut self, on: On, nth: u64, fault: Fault) -> Self {
        self.rules.push(Rule { on, skip: nth.saturating_sub(1), fault });
        self
    }

    /// How many faults have not happened yet.
    pub fn pending(&self) -> usize {
        self.rules.len()
    }

    /// A request came.
    pub(super) fn note(&mut self, link: Link, header: &[u8]) {
        let Some(header) = header.first_chunk::<BHS_LEN>() else { return };
        let Ok(bhs) = Bhs::parse(header) else { return };
        if bhs.opcode() == Opcode::ScsiCommand {
            if self.commands.len() == COMMANDS_MAX {
                self.commands.pop_first();
            }
            self.commands.insert((link, bhs.initiator_task_tag), *header);
        }
    }

    /// What is sent for a PDU.
    pub(super) fn filter(
        &mut self,
        link: Link,
        header: [u8; BHS_LEN],
        data: Vec<u8>,
    ) -> Vec<Piece> {
        if self.silent.contains(&link) {
            return Vec::new();
        }
        let fault = self.fault_of(link, &header);
        let mut pieces = match fault {
            None => vec![Piece::Pdu { header, data, spoiled: None }],
            Some(fault) => self.apply(&fault, link, header, data),
        };
        for (of, left, _) in &mut self.late {
            if *of == link {
                *left = left.saturating_sub(1);
            }
        }
        let due = |(of, left, _): &mut (Link, u32, Piece)| *of == link && *left == 0;
        pieces.extend(self.late.extract_if(.., due).map(|(_, _, piece)| piece));
        pieces
    }

    fn fault_of(&mut self, link: Link, header: &[u8; BHS_LEN]) -> Option<Fault> {
        let [opcode, ..] = *header;
        let command = self.commands.get(&(link, word(header, TASK_TAG)));
        let [code, action] = command.map_or([0, 0], |command| [command[32], command[33] & 0x1f]);
        let fits = |on: On| match on {
            On::Any => true,
            On::Pdu(wanted) => opcode & 0x3f == wanted.code(),
            On::Answer(wanted) => command.is_some() && code == wanted,
            On::Action(wanted, of) => command.is_some() && (code, action) == (wanted, of),
        };
        let mut due = None;
        for (index, rule) in self.rules.iter_mut().enumerate() {
            if !fits(rule.on) {
                continue;
            }
            if rule.skip == 0 && due.is_none() {
                due = Some(index);
            }
            rule.skip = rule.skip.saturating_sub(1);
        }
        due.map(|index| self.rules.remove(index).fault)
    }

    fn apply(
        &mut self,
        fault: &Fault,
        link: Link,
        mut header: [u8; BHS_LEN],
        mut data: Vec<u8>,
    ) -> Vec<Piece> {
        let mut spoiled = None;
        match fault {
            Fault::StatSn(more) => add(&mut header, STAT_SN, *more),
            Fault::Window { exp, max } => {
                add(&mut header, EXP_CMD_SN, *exp);
                add(&mut header, MAX_CMD_SN, *max);
            }
            Fault::DataSn(more) => add(&mut header, DATA_SN, *more),
            Fault::BufferOffset(more) => add(&mut header, BUFFER_OFFSET, *more),
            Fault::Count(more) => add(&mut header, COUNT, *more),
            Fault::TaskTag(bits) => {
                let tag = word(&header, TASK_TAG) ^ bits;
                set(&mut header, TASK_TAG, tag);
            }
            Fault::Header { at, bits } => {
                if let Some(byte) = header.get_mut(*at) {
                    *byte ^= bits;
                }
            }
            Fault::Length(len) => set_len(&mut header, *len),
            Fault::ShortData(missing) => {
                data.truncate(data.len().saturating_sub(*missing));
                set_len(&mut header, len32(&data));
            }
            Fault::Data(new) => replace(&mut header, &mut data, new),
            Fault::Digest(part) => spoiled = Some(*part),
            Fault::Twice => return vec![pdu(header, data.clone()), pdu(header, data)],
            Fault::MoreR2ts(count) => return more_r2ts(header, &data, *count),
            Fault::Late(count) => {
                // This very PDU is counted, too.
                self.late.push((link, count.saturating_add(1), pdu(header, data)));
                return Vec::new();
            }
            Fault::Swallow => return Vec::new(),
            Fault::Silence => {
                self.silent.insert(link);
                return Vec::new();
            }
            Fault::Garbage(bytes) => return vec![Piece::Bytes(bytes.clone()), pdu(header, data)],
            Fault::Cut(len) => return vec![Piece::Cut(*len), pdu(header, data)],
            Fault::Reject(reason) => return self.reject(link, &header, *reason),
        }
        vec![Piece::Pdu { header, data, spoiled }]
    }

    fn reject(&self, link: Link, header: &[u8; BHS_LEN], reason: RejectReason) -> Vec<Piece> {
        let Some(refused) = self.commands.get(&(link, word(header, TASK_TAG))) else {
            return Vec::new();
        };
        let serial = |at| Serial::new(word(header, at));
        let reject = Reject {
            reason,
            serials: ResponseSerials {
                stat_sn: serial(STAT_SN),
                exp_cmd_sn: serial(EXP_CMD_SN),
                max_cmd_sn: serial(MAX_CMD_SN),
            },
            data_sn: Serial::default(),
            data_len: DataLen::of(refused).unwrap_or_default(),
        };
        vec![pdu(reject.to_bytes(), refused.to_vec())]
    }
}

fn pdu(header: [u8; BHS_LEN], data: Vec<u8>) -> Piece {
    Piece::Pdu { header, data, spoiled: None }
}

fn more_r2ts(header: [u8; BHS_LEN], data: &[u8], count: u32) -> Vec<Piece> {
    let copy = |n: u32| {
        let mut header = header;
        add(&mut header, DATA_SN, n);
        add(&mut header, TARGET_TAG, n.wrapping_mul(0x0100_0000));
        pdu(header, data.to_vec())
    };
    (0..=count).map(copy).collect()
}

/// Other data; the underflow of a Data-In with a status is what it is then.
fn replace(header: &mut [u8; BHS_LEN], data: &mut Vec<u8>, new: &[u8]) {
    let has_status = header[1] & 1 != 0;
    let overflows = header[1] & 4 != 0;
    if has_status && !overflows {
        let before = if header[1] & 2 != 0 { word(header, COUNT) } else { 0 };
        let expected = before.saturating_add(len32(data));
        let left = expected.saturating_sub(len32(new));
        header[1] = header[1] & !2 | if left > 0 { 2 } else { 0 };
        set(header, COUNT, left);
    }
    *data = new.to_vec();
    set_len(header, len32(new));
}

/// Where fields stand that most PDUs of targets have (RFC 7143, section 11.7).
const TASK_TAG: usize = 16;
const TARGET_TAG: usize = 20;
const STAT_SN: usize = 24;
const EXP_CMD_SN: usize = 28;
const MAX_CMD_SN: usize = 32;
const DATA_SN: usize = 36;
const BUFFER_OFFSET: usize = 40;
const COUNT: usize = 44;

fn word(header: &[u8; BHS_LEN], at: usize) -> u32 {
    let word = header.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u32::from_be_bytes(*word))
}

fn set(header: &mut [u8; BHS_LEN], at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn add(header: &mut [u8; BHS_LEN], at: usize, more: u32) {
    let value = word(header, at).wrapping_add(more);
    set(header, at, value);
}

fn set_len(header: &mut [u8; BHS_LEN], len: u32) {
    let [_, len @ ..] = len.to_be_bytes();
    header[5..8].copy_from_slice(&len);
}

fn len32(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// How many bytes of a PDU's data its header announces.
pub(super) fn announced([_, _, _, _, _, high, middle, low, ..]: &[u8; BHS_LEN]) -> usize {
    to_usize(u32::from_be_bytes([0, *high, *middle, *low]).into())
}
