//! Mode pages: MODE SENSE and MODE SELECT (SPC-4), the pages caching (SBC-3) and control (SPC-4).
//!
//! Invariant: a MODE SELECT that is refused changes nothing. There are no saved pages.

use super::check::{Check, SenseFormat};
use super::command::{Cdb, Op};
use super::describe::cut;
use super::device::{MODE_CHANGED, Nexus};
use super::lun::{Access, Lun};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const ALL: u8 = 0x3f;
/// WCE, in byte 2 of the caching page.
const WRITE_CACHE: u8 = 0x04;
/// D_SENSE, in byte 2 of the control page.
const DESCRIPTOR_SENSE: u8 = 0x04;
/// SWP, in byte 4 of the control page.
const WRITE_PROTECT: u8 = 0x08;
/// PF, in byte 1 of MODE SELECT.
const PAGE_FORMAT: u8 = 0x10;

/// What mode pages can change.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Mode {
    write_cache: bool,
    /// The software write protection.
    pub(super) write_protect: bool,
    /// How sense data is sent.
    pub(super) format: SenseFormat,
}

impl Mode {
    pub(super) fn new(format: SenseFormat) -> Self {
        Self { write_cache: true, write_protect: false, format }
    }

    fn caching(self) -> Vec<u8> {
        let flags = if self.write_cache { WRITE_CACHE } else { 0 };
        let mut page = vec![CACHING, 0x12, flags];
        page.resize(20, 0);
        page
    }

    fn control(self) -> Vec<u8> {
        let descriptors = self.format == SenseFormat::Descriptor;
        let flags = if descriptors { DESCRIPTOR_SENSE } else { 0 };
        let protect = if self.write_protect { WRITE_PROTECT } else { 0 };
        let mut page = vec![CONTROL, 0x0a, flags, 0, protect];
        page.resize(12, 0);
        page
    }

    fn page(self, code: u8) -> Option<Vec<u8>> {
        match code {
            CACHING => Some(self.caching()),
            CONTROL => Some(self.control()),
            _ => None,
        }
    }

    /// Everything that can be set is.
    const EVERYTHING: Self =
        Self { write_cache: true, write_protect: true, format: SenseFormat::Descriptor };

    /// The bits of a page that can be changed, as MODE SENSE reports them.
    fn changeable(code: u8) -> Option<Vec<u8>> {
        Self::EVERYTHING.page(code)
    }

    /// With what a page says, which may differ in changeable bits only.
    fn with(self, page: &[u8]) -> Self {
        let has = |at: usize, bit: u8| page.get(at).is_some_and(|byte| byte & bit != 0);
        if page.first() == Some(&CACHING) {
            return Self { write_cache: has(2, WRITE_CACHE), ..self };
        }
        let descriptors = has(2, DESCRIPTOR_SENSE);
        let format = if descriptors { SenseFormat::Descriptor } else { SenseFormat::Fixed };
        Self { write_protect: has(4, WRITE_PROTECT), format, ..self }
    }
}

impl Lun {
    /// Refuses what writes, if the unit is write protected by whatever means.
    pub(super) fn check_writable(&self) -> Result<(), Check> {
        if self.config.access == Access::ReadOnly {
            return Err(Check::WRITE_PROTECTED);
        }
        if self.mode.write_protect {
            return Err(Check::SOFTWARE_WRITE_PROTECTED);
        }
        Ok(())
    }

    /// MODE SENSE (6) and (10) (SPC-4).
    pub(super) fn mode_sense(&self, op: Op, cdb: Cdb) -> Result<Vec<u8>, Check> {
        let control = cdb.u8(2) >> 6;
        if control == 3 {
            return Err(Check::NO_SAVED_PAGES);
        }
        let mode = match control {
            1 => Mode::EVERYTHING,
            2 => self.default_mode,
            _ => self.mode,
        };
        let pages = mode_pages(mode, cdb.u8(2) & 0x3f, cdb.u8(3))?;
        // WP and DPOFUA.
        let specific = if self.check_writable().is_err() { 0x90 } else { 0x10 };
        let descriptor = if cdb.has(1, 0x08) { Vec::new() } else { self.block_descriptor() };
        let descriptor_len = u8::try_from(descriptor.len()).unwrap_or(u8::MAX);
        let content = [descriptor, pages].concat();
        if op == Op::ModeSense6 {
            let len = u8::try_from(content.len() + 3).unwrap_or(u8::MAX);
            let out = [&[len, 0, specific, descriptor_len], content.as_slice()].concat();
            return Ok(cut(out, cdb.u8(4)));
        }
        let len = u16::try_from(content.len() + 6).unwrap_or(u16::MAX).to_be_bytes();
        let head = [len[0], len[1], 0, specific, 0, 0, 0, descriptor_len];
        Ok(cut([&head, content.as_slice()].concat(), cdb.u16(7)))
    }

    /// The short LBA mode parameter block descriptor (SBC-3).
    fn block_descriptor(&self) -> Vec<u8> {
        let blocks = u32::try_from(self.config.blocks).unwrap_or(u32::MAX);
        [blocks.to_be_bytes(), self.config.block_size.to_be_bytes()].concat()
    }

    /// MODE SELECT (6) and (10) (SPC-4). The others are told if anything changed.
    pub(super) fn mode_select(
        &mut self,
        nexus: Nexus,
        op: Op,
        cdb: Cdb,
        data: &[u8],
    ) -> Result<(), Check> {
        if !cdb.has(1, PAGE_FORMAT) {
            return Err(Check::field(1, 4));
        }
        let (len, head) =
            if op == Op::ModeSelect6 { (u16::from(cdb.u8(4)), 4) } else { (cdb.u16(7), 8) };
        if len == 0 {
            return Ok(());
        }
        let list = data.get(..len.into()).filter(|list| list.len() >= head);
        let list = list.ok_or(Check::LIST_LENGTH)?;
        let start = self.after_descriptor(list, head)?;
        let mode = selected(self.mode, list, start)?;
        if mode != self.mode {
            self.mode = mode;
            self.tell_others(nexus, MODE_CHANGED);
        }
        Ok(())
    }

    /// Where the pages begin, after at most one block descriptor, which must change nothing.
    fn after_descriptor(&self, list: &[u8], head: usize) -> Result<usize, Check> {
        let fields = Cdb::new(list);
        let (len, at) = if head == 4 { (fields.u8(3).into(), 3) } else { (fields.u16(6), 6) };
        // LONGLBA.
        if head == 8 && fields.has(4, 1) {
            return Err(Check::parameter(4, 0));
        }
        match len {
            0 => Ok(head),
            8 => {
                let found = list.get(head..head + 8).ok_or(Check::LIST_LENGTH)?;
                let known = self.block_descriptor();
                let same_len = found[5..] == known[5..];
                if !same_len || (found[..4] != known[..4] && found[..4] != [0; 4]) {
                    return Err(Check::parameter(if head == 4 { 4 } else { 8 }, 7));
                }
                Ok(head + 8)
            }
            _ => Err(Check::parameter(at, 7)),
        }
    }
}

/// The pages that are asked for.
fn mode_pages(mode: Mode, page: u8, subpage: u8) -> Result<Vec<u8>, Check> {
    if subpage != 0 && !(page == ALL && subpage == 0xff) {
        return Err(Check::field(3, 7));
    }
    match page {
        ALL => Ok([mode.caching(), mode.control()].concat()),
        page => mode.page(page).ok_or(Check::field(2, 5)),
    }
}

/// What a list of pages, from `at` on, makes of `mode`.
fn selected(mut mode: Mode, list: &[u8], mut at: usize) -> Result<Mode, Check> {
    while at < list.len() {
        let place = u16::try_from(at).unwrap_or(u16::MAX);
        let code = list[at];
        // Also if PS or SPF is set.
        let (known, changeable) =
            mode.page(code).zip(Mode::changeable(code)).ok_or(Check::parameter(place, 7))?;
        let page = list.get(at..at + known.len()).ok_or(Check::LIST_LENGTH)?;
        for (index, ((new, old), may)) in (0u16..).zip(page.iter().zip(&known).zip(&changeable)) {
            let may = if index < 2 { 0 } else { *may };
            if let Some(bit) = ((new ^ old) & !may).checked_ilog2() {
                return Err(Check::parameter(place + index, u8::try_from(bit).unwrap_or(7)));
            }
        }
        mode = mode.with(page);
        at += known.len();
    }
    Ok(mode)
}
