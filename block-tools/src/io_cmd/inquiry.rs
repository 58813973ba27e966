//! What asks about the image and moves nothing: `alloc`, `map`, `length`, `info`, and `sleep`.

use std::time::Duration;

use block_core::driver::ChildRole;
use block_core::info::{DriverInfo, InfoValue};
use block_core::range::SECTOR_SIZE;
use block_core::request::status::StatusDetail;
use block_core::{Alignment, ByteRange, Error, Node, Result};
use futures::channel::oneshot;

use crate::open;
use crate::spec::shown_value;

use super::number::size_text;
use super::{Failure, Session, size};

impl Session {
    pub(super) async fn alloc(&mut self, words: &[&str]) -> Result<(), Failure> {
        let offset = size(words.first().copied().unwrap_or_default())?;
        let count = words.get(1).map_or(Ok(SECTOR_SIZE), |text| size(text))?;
        let node = below_filters(self.image()?.node());
        let end = offset.saturating_add(count).min(node.len()).max(offset);
        let counted = self.pending.wait(&mut self.out, count_allocated(&node, offset, end)).await;
        let allocated = counted.map_err(|error| {
            Failure::Line(format!("is_allocated failed: {}", error.errno_text()))
        })?;
        self.out.line(format_args!(
            "{allocated}/{} bytes allocated at offset {}",
            end - offset,
            size_text(offset)
        ));
        Ok(())
    }

    pub(super) async fn map(&mut self) -> Result<(), Failure> {
        let node = below_filters(self.image()?.node());
        let mut offset = 0;
        while offset < node.len() && !self.out.broken {
            let run = self.pending.wait(&mut self.out, allocation_run(&node, offset)).await;
            let failed = |error: Error| {
                self.named(format_args!("Failed to get allocation status: {}", error.errno_text()))
            };
            let (allocated, mut len) = run.map_err(failed)?;
            if offset + len == node.len() {
                // The last sector is all there.
                len = Alignment::SECTOR.round_up(node.len()) - offset;
            }
            self.out.line(format_args!(
                "{} ({len:#x}) bytes {} allocated at offset {} ({offset:#x})",
                size_text(len),
                if allocated { "   " } else { "not" },
                size_text(offset),
            ));
            offset += len;
        }
        Ok(())
    }

    pub(super) fn length(&mut self) -> Result<(), Failure> {
        let len = self.image()?.len();
        self.out.line(size_text(len));
        Ok(())
    }

    pub(super) fn info(&mut self) -> Result<(), Failure> {
        let node = self.image()?.node().clone();
        let mut info = node.driver().info();
        info.specific.iter_mut().for_each(|(_, value)| shown_value(value));
        let name = node.driver().name();
        self.out.line(format_args!("format name: {name}"));
        if open::registry().get(name).is_ok_and(|factory| !factory.schemes().is_empty()) {
            // Once as the format, once as the protocol.
            self.out.line(format_args!("format name: {name}"));
        }
        if info.cluster_size.is_none() && storage(&node).driver().info() == DriverInfo::default() {
            return Err(Failure::Told);
        }
        self.out.line(format_args!("cluster size: {}", size_text(info.cluster_size.unwrap_or(0))));
        let vm_state = size_text(vm_state_offset(node.len(), &info));
        self.out.line(format_args!("vm state offset: {vm_state}"));
        if !info.specific.is_empty() {
            self.out.line("Format specific information:");
            let mut lines = Vec::new();
            for (name, value) in &info.specific {
                info_lines(name, value, 1, &mut lines);
            }
            lines.iter().for_each(|line| self.out.line(line));
        }
        Ok(())
    }

    pub(super) async fn sleep(&mut self, words: &[&str]) -> Result<(), Failure> {
        let text = words.first().copied().unwrap_or_default();
        let Ok(milliseconds) = text.parse() else {
            return Err(Failure::Line(format!("{text} is not a valid number")));
        };
        let (alarm, rung) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(milliseconds));
            // The session waits for it, unless it has ended.
            let _ = alarm.send(());
        });
        self.pending.wait(&mut self.out, rung).await.map_err(|_| Failure::Told)
    }

    pub(super) async fn aio_flush(&mut self) -> Result<(), Failure> {
        self.pending.finish(&mut self.out).await;
        Ok(())
    }
}

/// The image that a filter passes requests to: it is the one that holds something itself.
fn below_filters(node: &Node) -> Node {
    match node.driver().filtered() {
        Some(below) => below_filters(below),
        None => node.clone(),
    }
}

/// The node that holds the bytes of `node`.
fn storage(node: &Node) -> Node {
    let below = [ChildRole::Primary, ChildRole::Filtered, ChildRole::Metadata];
    match node.children().iter().find(|child| below.contains(&child.role)) {
        Some(child) => storage(&child.node),
        None => node.clone(),
    }
}

/// Bytes of `[offset, end)` that the node itself holds; `end` is at most its length.
async fn count_allocated(node: &Node, mut offset: u64, end: u64) -> Result<u64> {
    let mut allocated = 0;
    while offset < end {
        let range = ByteRange::from_bounds(offset, end)?;
        let status = node.block_status(range, StatusDetail::Allocation).await?;
        if status.is_allocated() {
            allocated += status.len;
        }
        if status.len == 0 {
            break;
        }
        offset += status.len;
    }
    Ok(allocated)
}

/// Whether the node itself holds the byte at `offset`, and for how many bytes that holds.
async fn allocation_run(node: &Node, offset: u64) -> Result<(bool, u64)> {
    let mut first = None;
    let mut at = offset;
    while at < node.len() {
        let range = ByteRange::from_bounds(at, node.len())?;
        let status = node.block_status(range, StatusDetail::Allocation).await?;
        if status.len == 0 || *first.get_or_insert(status.is_allocated()) != status.is_allocated() {
            break;
        }
        at += status.len;
    }
    match first {
        Some(allocated) if at > offset => Ok((allocated, at - offset)),
        // The disk shrank meanwhile, or the driver knows nothing.
        _ => Err(Error::IO),
    }
}

/// Where saved machine state stands among the offsets of a disk: after it, at the next entry of the
/// L1 table. Zero for formats without; qcow2 is the one that has it, and tells of its entries.
fn vm_state_offset(len: u64, info: &DriverInfo) -> u64 {
    let extended = info.specific.iter().find(|(name, _)| *name == "extended-l2");
    let entry_bytes = match extended {
        Some((_, InfoValue::Bool(true))) => 16,
        _ => 8,
    };
    let is_qcow2 = info.specific.iter().any(|(name, _)| *name == "compat");
    let cluster = info.cluster_size.filter(|_| is_qcow2).unwrap_or(0);
    let covered = cluster.saturating_mul(cluster / entry_bytes);
    len.checked_next_multiple_of(covered).unwrap_or(0)
}

/// One value of the driver's own, `depth` levels in: dashes in names become spaces.
fn info_lines(name: &str, value: &InfoValue, depth: usize, lines: &mut Vec<String>) {
    let head = format!("{}{}:", "    ".repeat(depth), name.replace('-', " "));
    let text = match value {
        InfoValue::Bool(value) => value.to_string(),
        InfoValue::Int(value) => value.to_string(),
        InfoValue::Text(value) => value.clone(),
        InfoValue::List(values) => {
            lines.push(head);
            for (index, value) in values.iter().enumerate() {
                info_lines(&format!("[{index}]"), value, depth + 1, lines);
            }
            return;
        }
        InfoValue::Map(values) => {
            lines.push(head);
            for (name, value) in values {
                info_lines(name, value, depth + 1, lines);
            }
            return;
        }
    };
    lines.push(format!("{head} {text}"));
}
